use serde_json::{Value, json};

use super::*;

fn check(topic: Topic, expected: &str) -> Value {
    let reply = show(topic, shards());
    assert_eq!(reply.text, expected, "\n{}", reply.text);
    reply.value
}

/// Two shards, the second first, as their answers may arrive.
fn shards() -> Vec<ShardReport> {
    let client = ClientRow {
        id: 7,
        user: "app".to_string(),
        database: "shop".to_string(),
        state: ClientState::Active,
        shard: 0,
        address: "10.0.0.7:40312".to_string(),
        connected_s: 3725,
        application_name: "psql\x1b[2J".to_string(),
        backend_pid: Some(4711),
        wait_ms: 0,
        pinned: vec!["LISTEN".to_string()],
        pinned_s: 62,
        quiet_s: 2,
        tls: false,
        local: String::new(),
        cipher: String::new(),
        replication: "none".to_owned(),
        prepared_statements: 0,
    };
    let waiting = ClientRow {
        id: 1031,
        state: ClientState::Waiting,
        shard: 1,
        address: "unix".to_string(),
        connected_s: 5,
        application_name: String::new(),
        backend_pid: None,
        wait_ms: 1520,
        pinned: Vec::new(),
        pinned_s: 0,
        ..client.clone()
    };
    let backend = BackendRow {
        pid: Some(4711),
        user: "app".to_string(),
        database: "shop".to_string(),
        server: "10.0.0.1:5432".to_string(),
        state: BackendState::Linked,
        shard: 0,
        age_s: 90,
        idle_s: 0,
        client: Some(7),
        transaction_ms: 0,
        busy: false,
        close_needed: false,
        tls: false,
        local: String::new(),
        cipher: String::new(),
        replication: "none".to_owned(),
        prepared_statements: 0,
    };
    let dialing =
        BackendRow { pid: None, state: BackendState::Dialing, shard: 1, age_s: 0, client: None, ..backend.clone() };
    let memory = MemoryReport {
        terms: vec![term("arena", 60, 66_560), term("clients", 5000, 512)],
        arena_chunks: 60,
        arena_chunk_size: 66_560,
        chunks_in_use: 3,
        chunks_peak: 20,
        rss_bytes: None,
    };
    let counters = Counters {
        clients: 1,
        backends: 1,
        queries: 1000,
        transactions: 900,
        bytes_in: 24_000,
        bytes_out: 6_400_000,
        waits: 12,
    };
    let first = ShardReport {
        shard: 0,
        core: Some(0),
        uptime_s: 90_000,
        clients: vec![client],
        backends: vec![backend],
        pools: vec![part("shop", "app", 10), part("shop", "batch", 10)],
        memory: memory.clone(),
        counters,
        paused: Vec::new(),
        disabled: Vec::new(),
        names: Vec::new(),
    };
    let second = ShardReport {
        shard: 1,
        core: None,
        clients: vec![waiting],
        backends: vec![dialing],
        pools: vec![PoolRow { oldest_wait_ms: 1520, waiting: 1, ..part("shop", "app", 10) }, part("books", "app", 5)],
        memory: MemoryReport {
            terms: vec![term("arena", 60, 66_560), term("clients", 5000, 256)],
            rss_bytes: Some(14_680_064),
            ..memory
        },
        ..first.clone()
    };
    vec![second, first]
}

fn term(name: &str, count: u64, each_bytes: u64) -> Term {
    Term {
        name: name.to_string(),
        count,
        each_bytes,
        bytes: count * each_bytes,
        what: format!("one for each of {name}"),
    }
}

fn part(database: &str, user: &str, permits: u64) -> PoolRow {
    PoolRow {
        role: String::new(),
        server: "10.0.0.1:5432".to_string(),
        database: database.to_string(),
        user: user.to_string(),
        mode: RelayMode::Smart,
        size: 20,
        permits,
        idle: 2,
        linked: 3,
        dialing: 1,
        cleaning: 0,
        waiting: 0,
        oldest_wait_ms: 0,
        queries: 1000,
        transactions: 900,
        clients: 40,
    }
}

#[test]
fn pools_are_added_up_over_shards() {
    let value = check(
        Topic::Pools,
        "\
server         database  user   mode   size  linked  idle  dialing  cleaning  clients  waiting  oldest  queries  transactions  role
10.0.0.1:5432  books     app    Smart    20       3     2        1         0       40        0       0     1000           900
10.0.0.1:5432  shop      app    Smart    20       6     4        2         0       80        1    1.5s     2000          1800
10.0.0.1:5432  shop      batch  Smart    20       3     2        1         0       40        0       0     1000           900
",
    );
    assert_eq!(value[1]["permits"], 20);
    assert_eq!(value[1]["oldest_wait_ms"], 1520);
    assert_eq!(value.as_array().map(Vec::len), Some(3));
}

#[test]
fn memory_is_a_sum_whose_lines_add_up() {
    let value = check(
        Topic::Memory,
        "\
term     count    each      bytes  what
arena      120  66,560  7,987,200  one for each of arena
clients  5,000     256  1,280,000  one for each of clients
clients  5,000     512  2,560,000  one for each of clients

total  11,827,200 bytes (11.3 MB)
arena  120 chunks of 66,560 bytes, 6 in use, at most 40 so far
rss    14,680,064 bytes (14.0 MB)
",
    );
    assert_eq!(value["total_bytes"], 11_827_200);
    assert_eq!(value["rss_bytes"], 14_680_064);
    assert_eq!(value["terms"][0]["bytes"], 7_987_200);
}

#[test]
fn clients_are_listed_by_shard() {
    let value = check(
        Topic::Clients,
        "\
shard    id  database  user  state    wait  backend  pinned  connected  address         application
    0     7  shop      app   active      0     4711  LISTEN      1h02m  10.0.0.7:40312  psql\\u{1b}[2J
    1  1031  shop      app   waiting  1.5s        -                 5s  unix
",
    );
    assert_eq!(value[0]["application_name"], "psql\x1b[2J");
    assert_eq!(value[1]["backend_pid"], Value::Null);
}

#[test]
fn pins_are_those_that_last_longest_first() {
    let value = check(
        Topic::Pins,
        "\
shard  id  database  user    for  pinned by  backend  address         application
    0   7  shop      app   1m02s  LISTEN        4711  10.0.0.7:40312  psql\\u{1b}[2J
",
    );
    assert_eq!(value.as_array().map(Vec::len), Some(1));
}

#[test]
fn backends_are_listed_by_shard() {
    let value = check(
        Topic::Backends,
        "\
shard   pid  server         database  user  state      age  idle  client
    0  4711  10.0.0.1:5432  shop      app   linked   1m30s    0s       7
    1     -  10.0.0.1:5432  shop      app   dialing     0s    0s       -
",
    );
    assert_eq!(value[1]["state"], "dialing");
}

#[test]
fn shards_are_listed_by_number() {
    let value = check(
        Topic::Shards,
        "\
shard  core  clients  backends  queries  transactions       in     out  waits
    0     0        1         1     1000           900  23.4 KB  6.1 MB     12
    1     -        1         1     1000           900  23.4 KB  6.1 MB     12
",
    );
    assert_eq!(
        value[0],
        json!({
            "shard": 0, "core": 0, "clients": 1, "backends": 1, "queries": 1000, "transactions": 900,
            "bytes_in": 24_000, "bytes_out": 6_400_000, "waits": 12,
        })
    );
}

#[test]
fn nothing_to_show_is_a_line_of_titles() {
    for topic in [Topic::Pools, Topic::Clients, Topic::Backends, Topic::Shards] {
        let reply = show(topic, Vec::new());
        assert_eq!((reply.text.lines().count(), reply.value), (1, json!([])), "{topic:?}");
    }
    assert_eq!(show(Topic::Memory, Vec::new()).value["total_bytes"], 0);
}

#[test]
fn a_report_travels_as_json() {
    for report in shards() {
        let line = serde_json::to_string(&report).expect("plain data");
        assert_eq!(serde_json::from_str::<ShardReport>(&line).expect("written above"), report);
    }
}

#[test]
fn status_says_all_at_a_glance() {
    let status = Status {
        version: "0.1.0".to_string(),
        pid: 123,
        uptime_s: 90_000,
        state: RunState::Draining,
        cores: 2,
        clients: 40,
        backends: 8,
        listening: vec!["0.0.0.0:8080".to_string(), "unix:/run/qcp/.s.PGSQL.8080".to_string()],
        config: "/etc/qcp.yaml".to_string(),
    };
    let expected = "\
qcp 0.1.0, process 123, draining for 1d01h
listening  0.0.0.0:8080, unix:/run/qcp/.s.PGSQL.8080
config     /etc/qcp.yaml
cores      2
clients    40
backends   8
";
    let reply = status.reply();
    assert_eq!(reply.text, expected);
    assert_eq!(serde_json::from_value::<Status>(reply.value).expect("written above"), status);
}

#[test]
fn states_are_spelled_the_same_in_both_forms() {
    fn check<T: Serialize>(state: T, name: &str) {
        assert_eq!(serde_json::to_value(state).expect("plain data"), name);
    }
    use BackendState as B;
    use ClientState as C;
    for state in [C::Login, C::Idle, C::Waiting, C::Active, C::Dedicated, C::Closing] {
        check(state, state.name());
    }
    for state in [B::Dialing, B::Login, B::Idle, B::Linked, B::Cleaning, B::Dedicated, B::Listening, B::Closing] {
        check(state, state.name());
    }
    for mode in [RelayMode::Session, RelayMode::Smart, RelayMode::Statement] {
        check(mode, mode.name());
    }
    for state in [RunState::Running, RunState::Draining] {
        check(state, state.name());
    }
}
