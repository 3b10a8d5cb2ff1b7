//! tokio-postgres, which prepares every statement and sends its requests ahead: more clients than backends, in all the
//! ways it has of asking.

use std::future::Future;
use std::io::Cursor;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt, TryStreamExt, future, pin_mut};
use tokio_postgres::{Client, NoTls};

use super::support::Address;
use super::support::pooler::Qcp;
use super::support::postgres::{SUPERUSER, postgres};

const TIME_MAX: Duration = Duration::from_secs(60);

/// Runs a test's future on a runtime of this thread alone.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    runtime.block_on(async { tokio::time::timeout(TIME_MAX, test).await.expect("the test ends in time") });
}

async fn connect(address: &Address, database: &str) -> Client {
    connect_as(address, SUPERUSER, "", database).await
}

async fn connect_as(address: &Address, user: &str, password: &str, database: &str) -> Client {
    let conninfo = format!("{} password='{password}'", address.conninfo(user, database));
    let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await.expect("the login succeeds");
    tokio::spawn(async move {
        // It ends with an error where a test kills its backend; the client's next request says so too.
        let _ = connection.await;
    });
    client
}

/// A qcp whose pool is smaller than the number of clients that the tests use, and which keeps their sessions.
fn small_pool(database: &str) -> Qcp {
    postgres().create_database(database);
    Qcp::start("relay_mode: Smart\nsession_state: preserve\npool: {size: 4}\n", 2)
}

/// What applications with a schema or a row policy for each tenant do, and workers that share jobs by advisory locks.
#[test]
fn tenants_and_jobs() {
    const TENANTS: i32 = 12;
    const JOBS: u64 = 40;
    let qcp = small_pool("drivers_tenants");
    let schemas = (0..TENANTS).map(|tenant| {
        format!("CREATE SCHEMA tenant_{tenant}; CREATE TABLE tenant_{tenant}.items AS SELECT {tenant} AS tenant;")
    });
    let sql = format!(
        "{} CREATE TABLE docs AS SELECT n % {TENANTS} AS tenant FROM generate_series(1, 120) n;
         ALTER TABLE docs ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON docs USING (tenant = current_setting('app.tenant')::int);
         CREATE ROLE drivers_application; GRANT SELECT ON docs TO drivers_application;
         CREATE TABLE jobs AS SELECT n AS id, NULL::int AS done_by FROM generate_series(1, {JOBS}) n;",
        schemas.collect::<String>()
    );
    postgres().execute("drivers_tenants", &sql);
    run(async {
        let address = qcp.tcp();
        let clients = future::join_all((0..TENANTS).map(|_| connect(&address, "drivers_tenants"))).await;
        let work = clients.iter().zip(0..).map(|(client, who): (&Client, i32)| async move {
            client.batch_execute(&format!("SET search_path TO tenant_{who}, public")).await.expect("it is set");
            let tenant = client.prepare("SELECT set_config('app.tenant', $1, false)").await.expect("it is prepared");
            client.query_one(&tenant, &[&who.to_string()]).await.expect("it is set");
            let own = client.prepare("SELECT tenant FROM items").await.expect("the path leads there");
            let docs =
                client.prepare("SELECT count(*), min(tenant), max(tenant) FROM docs").await.expect("it is there");
            client.batch_execute("SET ROLE drivers_application").await.expect("it may");
            for _ in 0..10 {
                let row = client.query_one(&docs, &[]).await.expect("the policy lets some through");
                assert_eq!((row.get::<_, i64>(0), row.get::<_, i32>(1), row.get::<_, i32>(2)), (10, who, who));
            }
            client.batch_execute("RESET ROLE").await.expect("it may");
            for _ in 0..10 {
                assert_eq!(client.query_one(&own, &[]).await.expect("it is there").get::<_, i32>(0), who);
            }
            let next = "SELECT id FROM jobs WHERE done_by IS NULL AND pg_try_advisory_lock(id) LIMIT 1";
            let mut done = 0;
            loop {
                let Some(job) = client.query_opt(next, &[]).await.expect("it is asked") else {
                    let left = client.query_one("SELECT count(*) FROM jobs WHERE done_by IS NULL", &[]).await;
                    match left.expect("it is asked").get::<_, i64>(0) {
                        0 => return done,
                        _ => continue,
                    }
                };
                let id: i32 = job.get(0);
                let update = "UPDATE jobs SET done_by = $1 WHERE id = $2 AND done_by IS NULL";
                done += client.execute(update, &[&who, &id]).await.expect("it is done");
                let unlocked = client.query_one("SELECT pg_advisory_unlock($1)", &[&i64::from(id)]).await;
                assert!(unlocked.expect("it is asked").get::<_, bool>(0), "its own lock");
            }
        });
        assert_eq!(future::join_all(work).await.iter().sum::<u64>(), JOBS);
    });
}

#[test]
fn prepared_statements_of_more_clients_than_backends() {
    const CLIENTS: usize = 24;
    let qcp = small_pool("drivers_prepared");
    run(async {
        let address = qcp.tcp();
        let clients: Vec<Client> = future::join_all((0..CLIENTS).map(|_| connect(&address, "drivers_prepared"))).await;
        let work = clients.iter().enumerate().map(|(who, client)| async move {
            let who = who as i64;
            let shared = client.prepare("SELECT $1::int8 * 2").await.expect("it is prepared");
            let own = client.prepare(&format!("SELECT $1::int8 + {who}")).await.expect("it is prepared");
            for round in 0..50_i64 {
                let row = client.query_one(&shared, &[&(who + round)]).await.expect("it is there");
                assert_eq!(row.get::<_, i64>(0), (who + round) * 2);
                let row = client.query_one(&own, &[&round]).await.expect("it is there");
                assert_eq!(row.get::<_, i64>(0), round + who);
            }
        });
        future::join_all(work).await;
    });
    assert!(postgres().count_backends("drivers_prepared") <= 4 + 4);
}

#[test]
fn many_statements_for_one_client() {
    let qcp = small_pool("drivers_statements");
    run(async {
        let client = connect(&qcp.tcp(), "drivers_statements").await;
        let mut statements = Vec::new();
        for number in 0..500 {
            statements.push(client.prepare(&format!("SELECT {number} + $1::int4")).await.expect("it is prepared"));
        }
        for (number, statement) in statements.iter().enumerate() {
            let row = client.query_one(statement, &[&1_i32]).await.expect("it is there");
            assert_eq!(row.get::<_, i32>(0), number as i32 + 1);
        }
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let qcp = small_pool("drivers_pipeline");
    run(async {
        let client = connect(&qcp.tcp(), "drivers_pipeline").await;
        let statement = client.prepare("SELECT 100 / $1::int4").await.expect("it is prepared");
        let numbers: Vec<i32> = (0..1000).map(|number| number % 10).collect();
        let replies = future::join_all(numbers.iter().map(|number| {
            let (client, statement) = (&client, &statement);
            async move { client.query_one(statement, &[number]).await }
        }));
        for (number, reply) in numbers.iter().zip(replies.await) {
            match reply {
                Ok(row) => assert_eq!(row.get::<_, i32>(0), 100 / number),
                Err(error) => {
                    assert_eq!(*number, 0, "{error}");
                    assert_eq!(error.code().expect("the server's own error").code(), "22012");
                }
            }
        }
    });
}

#[test]
fn transactions_of_many_clients_lose_nothing() {
    const CLIENTS: usize = 12;
    const ROUNDS: i64 = 20;
    let qcp = small_pool("drivers_transactions");
    postgres()
        .execute("drivers_transactions", "CREATE TABLE account (id int, sum int8); INSERT INTO account VALUES (1, 0)");
    run(async {
        let address = qcp.tcp();
        let clients = future::join_all((0..CLIENTS).map(|_| connect(&address, "drivers_transactions"))).await;
        let work = clients.into_iter().enumerate().map(|(who, mut client)| async move {
            for round in 0..ROUNDS {
                let transaction = client.transaction().await.expect("it begins");
                transaction
                    .execute("UPDATE account SET sum = sum + 1 WHERE id = $1", &[&1_i32])
                    .await
                    .expect("it is there");
                if (who as i64 + round) % 4 == 0 {
                    transaction.rollback().await.expect("it ends");
                } else {
                    transaction.commit().await.expect("it ends");
                }
            }
        });
        future::join_all(work).await;
    });
    let kept = (0..CLIENTS as i64)
        .flat_map(|who| (0..ROUNDS).map(move |round| who + round))
        .filter(|sum| sum % 4 != 0)
        .count();
    assert_eq!(postgres().execute("drivers_transactions", "SELECT sum FROM account").trim(), kept.to_string());
}

#[test]
fn portals_are_read_piece_by_piece() {
    let qcp = small_pool("drivers_portals");
    run(async {
        let mut client = connect(&qcp.tcp(), "drivers_portals").await;
        let transaction = client.transaction().await.expect("it begins");
        let first = transaction.bind("SELECT generate_series(1, 1000)", &[]).await.expect("it is bound");
        let second = transaction.bind("SELECT generate_series(1001, 1010)", &[]).await.expect("it is bound");
        let mut seen = 0;
        loop {
            let rows = transaction.query_portal(&first, 300).await.expect("it is open");
            if rows.is_empty() {
                break;
            }
            seen += rows.len();
        }
        assert_eq!(seen, 1000);
        assert_eq!(transaction.query_portal(&second, 0).await.expect("it is open").len(), 10);
        transaction.commit().await.expect("it ends");
    });
}

#[test]
fn copy_both_ways() {
    const ROWS: usize = 50_000;
    let qcp = small_pool("drivers_copy");
    postgres().execute("drivers_copy", "CREATE TABLE copied (n int, word text)");
    run(async {
        let client = connect(&qcp.tcp(), "drivers_copy").await;
        let sink = client.copy_in("COPY copied FROM STDIN").await.expect("it begins");
        pin_mut!(sink);
        for row in 0..ROWS {
            sink.feed(Cursor::new(format!("{row}\tword {row}\n"))).await.expect("the server takes it");
        }
        assert_eq!(sink.finish().await.expect("it ends"), ROWS as u64);
        let out = client.copy_out("COPY copied TO STDOUT").await.expect("it begins");
        pin_mut!(out);
        let mut lines = 0;
        while let Some(piece) = out.try_next().await.expect("the server gives it") {
            lines += piece.iter().filter(|byte| **byte == b'\n').count();
        }
        assert_eq!(lines, ROWS);
        // A copy that is dropped half way ends as a failed one.
        let sink = client.copy_in("COPY copied FROM STDIN").await.expect("it begins");
        let mut sink = Box::pin(sink);
        sink.send(Cursor::new("1\tone\n".to_owned())).await.expect("the server takes it");
        drop(sink);
        let row = client.query_one("SELECT count(*) FROM copied", &[]).await.expect("the connection is usable");
        assert_eq!(row.get::<_, i64>(0), ROWS as i64);
    });
}

#[test]
fn a_cancel_hits_its_own_query_only() {
    let qcp = small_pool("drivers_cancel");
    run(async {
        let address = qcp.tcp();
        let victim = connect(&address, "drivers_cancel").await;
        let other = connect(&address, "drivers_cancel").await;
        let token = victim.cancel_token();
        let (slept, (), quiet) = future::join3(
            victim.batch_execute("SELECT pg_sleep(20)"),
            async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                token.cancel_query(NoTls).await.expect("it is asked");
            },
            other.batch_execute("SELECT pg_sleep(1)"),
        )
        .await;
        assert_eq!(slept.expect_err("it is cancelled").code().expect("the server's own error").code(), "57014");
        quiet.expect("nobody cancelled it");
        victim.batch_execute("SELECT 1").await.expect("the connection lives");
    });
}

#[test]
fn passwords_of_each_kind() {
    let qcp = small_pool("drivers_passwords");
    run(async {
        for role in &super::support::postgres::ROLES {
            if role.method == "reject" {
                continue;
            }
            let client = connect_as(&qcp.tcp(), role.name, role.password, "drivers_passwords").await;
            let row = client.query_one("SELECT current_user::text", &[]).await.expect("the server answers");
            assert_eq!(row.get::<_, &str>(0), role.name);
        }
    });
}

#[test]
fn rows_arrive_as_a_stream() {
    let qcp = small_pool("drivers_stream");
    run(async {
        let client = connect(&qcp.tcp(), "drivers_stream").await;
        let parameters: [i32; 1] = [100_000];
        let rows = client.query_raw("SELECT generate_series(1, $1::int4)", &parameters).await.expect("it begins");
        pin_mut!(rows);
        let mut sum = 0_i64;
        while let Some(row) = rows.next().await {
            sum += i64::from(row.expect("a row").get::<_, i32>(0));
        }
        assert_eq!(sum, 5_000_050_000);
    });
}
