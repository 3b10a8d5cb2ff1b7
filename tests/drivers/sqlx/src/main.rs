//! sqlx: its pool, statements that it prepares all of, streams, savepoints, LISTEN, jobs by advisory locks, tenants by search_path
//! and by row security.

use std::time::Duration;

use futures_util::{TryStreamExt, future::try_join_all};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{Acquire, Connection, PgConnection, PgPool, Row};

type Outcome = Result<(), sqlx::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let dsn = std::env::var("DSN").expect("DSN says where");
    let pool = PgPoolOptions::new().max_connections(8).connect(&dsn).await?;
    try_join_all((0..10).map(|number| tenant(&dsn, number))).await?;
    try_join_all((0..10).map(|number| borrowed(&pool, number))).await?;
    jobs(&pool).await?;
    listen(&pool).await
}

/// A connection of its own with a path of its own.
async fn tenant(dsn: &str, number: i32) -> Outcome {
    let options: PgConnectOptions = dsn.parse()?;
    let options = options.options([("search_path", format!("tenant_{number}"))]);
    let mut connection = PgConnection::connect_with(&options).await?;
    for _ in 0..20 {
        let found = sqlx::query("SELECT tenant FROM items WHERE id <= $1").bind(3).fetch_all(&mut connection).await?;
        let tenants: Vec<i32> = found.iter().map(|row| row.get(0)).collect();
        assert_eq!(tenants, [number; 3]);
    }
    sqlx::query("SELECT set_config('app.tenant', $1, false)").bind(number.to_string()).execute(&mut connection).await?;
    sqlx::query("SET ROLE application").execute(&mut connection).await?;
    for _ in 0..5 {
        let seen: Vec<i32> = sqlx::query_scalar("SELECT DISTINCT tenant FROM public.docs").fetch_all(&mut connection).await?;
        assert_eq!(seen, [number]);
    }
    sqlx::query("RESET ROLE").execute(&mut connection).await?;
    let sum: i64 = sqlx::query_scalar("SELECT generate_series(1, 300)")
        .fetch(&mut connection)
        .try_fold(0, |sum, n: i32| async move { Ok(sum + i64::from(n)) })
        .await?;
    assert_eq!(sum, 45_150);
    let path: String = sqlx::query_scalar("SHOW search_path").fetch_one(&mut connection).await?;
    assert_eq!(path, format!("tenant_{number}"));
    connection.close().await
}

/// Transactions on connections of sqlx's pool: what one sets for its own is gone when the next has them.
async fn borrowed(pool: &PgPool, number: i32) -> Outcome {
    for _ in 0..5 {
        let mut transaction = pool.begin().await?;
        sqlx::query(&format!("SET LOCAL search_path TO tenant_{number}")).execute(&mut *transaction).await?;
        let mut savepoint = transaction.begin().await?;
        let error = sqlx::query("SELECT 1/0").execute(&mut *savepoint).await.expect_err("it cannot be divided");
        assert_eq!(error.as_database_error().and_then(|error| error.code()).as_deref(), Some("22012"));
        savepoint.rollback().await?;
        let tenant: i32 = sqlx::query_scalar("SELECT DISTINCT tenant FROM items").fetch_one(&mut *transaction).await?;
        assert_eq!(tenant, number);
        transaction.commit().await?;
        let path: String = sqlx::query_scalar("SHOW search_path").fetch_one(pool).await?;
        assert_eq!(path, "\"$user\", public");
    }
    Ok(())
}

async fn jobs(pool: &PgPool) -> Outcome {
    sqlx::query("INSERT INTO jobs (id) SELECT generate_series(2000, 2059)").execute(pool).await?;
    let done = try_join_all((0..5).map(|who| work(pool, who))).await?;
    assert_eq!(done.iter().sum::<u64>(), 60, "each job once");
    Ok(())
}

async fn work(pool: &PgPool, who: i32) -> Result<u64, sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let mut done = 0;
    loop {
        let job: Option<i32> = sqlx::query_scalar(
            "SELECT id FROM jobs WHERE done_by IS NULL AND id BETWEEN 2000 AND 2999 AND pg_try_advisory_lock(id) LIMIT 1",
        )
        .fetch_optional(&mut *connection)
        .await?;
        let Some(job) = job else {
            let left: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs WHERE done_by IS NULL AND id BETWEEN 2000 AND 2999")
                .fetch_one(&mut *connection)
                .await?;
            if left == 0 {
                return Ok(done);
            }
            continue;
        };
        let update = sqlx::query("UPDATE jobs SET done_by = $1 WHERE id = $2 AND done_by IS NULL");
        done += update.bind(format!("sqlx {who}")).bind(job).execute(&mut *connection).await?.rows_affected();
        let unlocked: bool = sqlx::query_scalar("SELECT pg_advisory_unlock($1)").bind(i64::from(job)).fetch_one(&mut *connection).await?;
        assert!(unlocked, "its own lock");
    }
}

async fn listen(pool: &PgPool) -> Outcome {
    let mut ear = PgListener::connect_with(pool).await?;
    ear.listen_all(["sqlx", "other"]).await?;
    for word in ["a", "b", "c"] {
        sqlx::query("SELECT pg_notify('sqlx', $1)").bind(word).execute(pool).await?;
    }
    for word in ["a", "b", "c"] {
        let heard = tokio::time::timeout(Duration::from_secs(10), ear.recv()).await.expect("it comes")?;
        assert_eq!((heard.channel(), heard.payload()), ("sqlx", word));
    }
    Ok(())
}
