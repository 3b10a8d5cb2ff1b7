// PgJDBC: its prepared statements, portals read in pieces, savepoints, batches, LISTEN, jobs by advisory locks, tenants by the
// startup packet's search_path and by row security.
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;

public class UsePgjdbc {
    // postgresql://user@host:port/database, as the other drivers take it.
    static final String[] PARTS = System.getenv("DSN").substring("postgresql://".length()).split("@");

    static Connection connect(String more) throws SQLException {
        return DriverManager.getConnection("jdbc:postgresql://" + PARTS[1] + "?user=" + PARTS[0] + more);
    }

    static void check(boolean holds, String what) {
        if (!holds) throw new AssertionError(what);
    }

    static Object one(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            check(rows.next(), "a row of " + sql);
            return rows.getObject(1);
        }
    }

    static void execute(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(sql);
        }
    }

    static Void tenant(int number) throws SQLException {
        try (Connection connection = connect("&prepareThreshold=2&currentSchema=tenant_" + number)) {
            // A statement of the server's from the second time on.
            try (PreparedStatement items = connection.prepareStatement("SELECT tenant FROM items WHERE id <= ? ORDER BY id")) {
                for (int round = 0; round < 20; round++) {
                    items.setInt(1, 3);
                    try (ResultSet rows = items.executeQuery()) {
                        int count = 0;
                        for (; rows.next(); count++) check(rows.getInt(1) == number, "the tenant's own row");
                        check(count == 3, "three rows");
                    }
                }
            }
            execute(connection, "SET app.tenant = '" + number + "'");
            execute(connection, "SET ROLE application");
            for (int round = 0; round < 5; round++) {
                check(one(connection, "SELECT array_agg(DISTINCT tenant)::text FROM public.docs").equals("{" + number + "}"), "row security");
            }
            execute(connection, "RESET ROLE");
            connection.setAutoCommit(false);
            try (Statement cursor = connection.createStatement()) {
                cursor.setFetchSize(50);
                int count = 0;
                try (ResultSet rows = cursor.executeQuery("SELECT generate_series(1, 500)")) {
                    while (rows.next()) check(rows.getInt(1) == ++count, "in order");
                }
                check(count == 500, "all of the portal");
            }
            Savepoint savepoint = connection.setSavepoint("here");
            try {
                one(connection, "SELECT 1/0");
                throw new AssertionError("the error is lost");
            } catch (SQLException error) {
                check(error.getSQLState().equals("22012"), error.toString());
            }
            connection.rollback(savepoint);
            check(one(connection, "SELECT max(id) FROM items").equals(3), "the transaction goes on");
            connection.commit();
            // SET SESSION CHARACTERISTICS, which the next transaction shows.
            connection.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
            check(one(connection, "SHOW transaction_isolation").equals("serializable"), "its own isolation");
            connection.commit();
            connection.setAutoCommit(true);
            check(one(connection, "SHOW search_path").equals("tenant_" + number), "its own path");
        }
        return null;
    }

    static Integer work(String name) throws SQLException {
        int done = 0;
        try (Connection connection = connect("")) {
            while (true) {
                Integer job = null;
                try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(
                        "SELECT id FROM jobs WHERE done_by IS NULL AND id BETWEEN 1000 AND 1999 AND pg_try_advisory_lock(id) LIMIT 1")) {
                    if (rows.next()) job = rows.getInt(1);
                }
                if (job == null) {
                    if (one(connection, "SELECT count(*) FROM jobs WHERE done_by IS NULL AND id BETWEEN 1000 AND 1999").equals(0L)) return done;
                    continue;
                }
                try (PreparedStatement update = connection.prepareStatement("UPDATE jobs SET done_by = ? WHERE id = ? AND done_by IS NULL")) {
                    update.setString(1, name);
                    update.setInt(2, job);
                    done += update.executeUpdate();
                }
                check(one(connection, "SELECT pg_advisory_unlock(" + job + ")").equals(true), "its own lock");
            }
        }
    }

    static void listen() throws SQLException {
        try (Connection ear = connect(""); Connection mouth = connect("")) {
            execute(ear, "LISTEN java");
            for (String word : new String[] {"a", "b", "c"}) execute(mouth, "NOTIFY java, '" + word + "'");
            StringBuilder heard = new StringBuilder();
            for (int tries = 0; heard.length() < 3 && tries < 50; tries++) {
                PGNotification[] notifications = ear.unwrap(PGConnection.class).getNotifications(200);
                for (int at = 0; notifications != null && at < notifications.length; at++) heard.append(notifications[at].getParameter());
            }
            check(heard.toString().equals("abc"), "heard: " + heard);
        }
    }

    public static void main(String[] arguments) throws Exception {
        try (Connection connection = connect("")) {
            try (PreparedStatement insert = connection.prepareStatement("INSERT INTO jobs (id) VALUES (?)")) {
                for (int job = 1000; job < 1060; job++) {
                    insert.setInt(1, job);
                    insert.addBatch();
                }
                check(insert.executeBatch().length == 60, "the batch");
            }
        }
        ExecutorService threads = Executors.newFixedThreadPool(10);
        List<Callable<Void>> tenants = new ArrayList<>();
        List<Callable<Integer>> workers = new ArrayList<>();
        for (int number = 0; number < 10; number++) {
            int own = number;
            tenants.add(() -> tenant(own));
            if (number < 5) workers.add(() -> work("java " + own));
        }
        for (Future<Void> ended : threads.invokeAll(tenants)) ended.get();
        int done = 0;
        for (Future<Integer> ended : threads.invokeAll(workers)) done += ended.get();
        check(done == 60, "each job once, not " + done);
        listen();
        threads.shutdown();
    }
}
