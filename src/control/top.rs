//! `qcp-ctrl top`: a live screen of what the pooler does: its cores, its pools with who waits for them, and the transactions
//! that last longest. What is on it is decided here from one [`Top`] after another; the terminal is the program's.

use std::collections::HashMap;
use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table};
use serde::{Deserialize, Serialize};

use super::report::metrics::{ShardMetrics, merged};
use super::report::{BackendState, Counters, RelayMode, RunState, ShardReport, Status, merge_memory};
use super::table;

/// Transactions that are told; the longest.
const TRANSACTIONS_MAX: usize = 100;
/// Pools that are told: those with the most waiting, and then the busiest.
const POOLS_MAX: usize = 200;

/// What the screen is made of, as the pooler tells it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Top {
    pub status: Status,
    pub cores: Vec<Core>,
    pub pools: Vec<Pool>,
    /// Those that are left out.
    pub pools_more: u64,
    /// The longest first.
    pub transactions: Vec<Transaction>,
    pub chunks: u64,
    pub chunks_in_use: u64,
    pub rss_bytes: Option<u64>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Core {
    pub shard: u16,
    /// Of its threads, since the start.
    pub cpu_s: f64,
    pub counters: Counters,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Pool {
    pub server: String,
    pub database: String,
    pub user: String,
    pub mode: RelayMode,
    pub size: u64,
    pub active: u64,
    pub idle: u64,
    pub cleaning: u64,
    pub login: u64,
    pub clients: u64,
    pub waiting: u64,
    pub oldest_wait_ms: u64,
    pub pinned: u64,
    pub in_trouble: bool,
    // Since the start.
    pub queries: u64,
    pub query_us: u64,
    pub transactions: u64,
    pub waits: u64,
    pub wait_us: u64,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Transaction {
    pub pid: Option<i32>,
    pub database: String,
    pub user: String,
    pub since_ms: u64,
    /// The server works on it; else it waits for its client.
    pub busy: bool,
    pub pinned: String,
    pub client: String,
    pub application: String,
}

impl Top {
    /// Adds up what all shards have told. `cpu_s`: by shard.
    pub fn new(status: Status, reports: &[ShardReport], counted: &[ShardMetrics], cpu_s: &[(u16, f64)]) -> Top {
        let cores = reports.iter().map(|report| {
            let cpu_s = cpu_s.iter().find(|(shard, _)| *shard == report.shard).map_or(0.0, |(_, seconds)| *seconds);
            Core { shard: report.shard, cpu_s, counters: report.counters }
        });
        let clients: HashMap<u64, _> =
            reports.iter().flat_map(|report| &report.clients).map(|client| (client.id, client)).collect();
        let mut pinned: HashMap<(&str, &str), u64> = HashMap::new();
        for client in clients.values().filter(|client| !client.pinned.is_empty()) {
            *pinned.entry((&client.database, &client.user)).or_default() += 1;
        }
        let pool = |pool: super::report::metrics::PoolMetrics| Pool {
            pinned: pinned.get(&(pool.database.as_str(), pool.user.as_str())).copied().unwrap_or_default(),
            mode: pool.mode,
            size: pool.size,
            active: pool.backends_active,
            idle: pool.backends_idle,
            cleaning: pool.backends_cleaning,
            login: pool.backends_login,
            clients: pool.clients_idle + pool.clients_active + pool.clients_waiting,
            waiting: pool.clients_waiting,
            oldest_wait_ms: pool.oldest_wait.as_millis() as u64,
            in_trouble: pool.in_trouble,
            queries: pool.totals.query().count(),
            query_us: pool.totals.query().total_us(),
            transactions: pool.totals.transaction().count(),
            waits: pool.totals.wait.count(),
            wait_us: pool.totals.wait.total_us(),
            server: pool.server,
            database: pool.database,
            user: pool.user,
        };
        let mut pools: Vec<Pool> = merged(counted).into_iter().map(pool).collect();
        pools.sort_by_key(|pool| std::cmp::Reverse((pool.waiting, pool.active, pool.transactions)));
        let pools_more = pools.len().saturating_sub(POOLS_MAX) as u64;
        pools.truncate(POOLS_MAX);
        let linked = reports.iter().flat_map(|report| &report.backends);
        let linked = linked.filter(|row| row.state == BackendState::Linked && row.transaction_ms > 0);
        let transaction = |row: &super::report::BackendRow| {
            let client = row.client.and_then(|id| clients.get(&id));
            Transaction {
                pid: row.pid,
                database: row.database.clone(),
                user: row.user.clone(),
                since_ms: row.transaction_ms,
                busy: row.busy,
                pinned: client.map(|client| client.pinned.join(", ")).unwrap_or_default(),
                client: client.map(|client| client.address.clone()).unwrap_or_default(),
                application: client.map(|client| client.application_name.clone()).unwrap_or_default(),
            }
        };
        let mut transactions: Vec<Transaction> = linked.map(transaction).collect();
        transactions.sort_by_key(|transaction| std::cmp::Reverse(transaction.since_ms));
        transactions.truncate(TRANSACTIONS_MAX);
        let memory = merge_memory(reports.iter().map(|report| report.memory.clone()));
        Top {
            status,
            cores: cores.collect(),
            pools,
            pools_more,
            transactions,
            chunks: memory.arena_chunks,
            chunks_in_use: memory.chunks_in_use,
            rss_bytes: memory.rss_bytes,
        }
    }
}

/// The screen, with what was on it before: rates are differences.
#[derive(Default)]
pub struct Screen {
    now: Option<(Duration, Top)>,
    before: Option<(Duration, Top)>,
    /// Why there is nothing new.
    trouble: Option<String>,
    /// Pools that are scrolled over.
    skipped: usize,
}

impl Screen {
    /// Something new. `at`: any clock that goes on.
    pub fn observe(&mut self, at: Duration, top: Top) {
        self.before = self.now.replace((at, top));
        self.trouble = None;
    }

    /// The pooler does not answer; what was there last stays.
    pub fn note_trouble(&mut self, why: String) {
        self.trouble = Some(why);
    }

    /// Shows other pools, further down the list or up.
    pub fn scroll(&mut self, down: isize) {
        let last = self.now.as_ref().map_or(0, |(_, top)| top.pools.len().saturating_sub(1));
        self.skipped = self.skipped.saturating_add_signed(down).min(last);
    }

    pub fn draw(&self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let Some((_, top)) = &self.now else {
            let text = self.trouble.as_deref().unwrap_or("asking ..");
            frame.render_widget(Paragraph::new(text.to_owned()), area);
            return;
        };
        // A title and its lines for each part; the pools get what the others leave, and at least a third.
        let cores = (top.cores.len() as u16 + 1).min(area.height / 4).max(2);
        let slow = (top.transactions.len().max(1) as u16 + 1).min(area.height / 3).max(3);
        let parts = Layout::vertical([
            Constraint::Length(2),
            Constraint::Length(cores),
            Constraint::Length(1),
            Constraint::Min(3),
            Constraint::Length(1),
            Constraint::Length(slow),
            Constraint::Length(1),
        ]);
        let [head, cores, _, pools, _, transactions, foot] = parts.areas(area);
        frame.render_widget(self.head(top), head);
        self.draw_cores(top, frame, cores);
        self.draw_pools(top, frame, pools);
        draw_transactions(top, frame, transactions);
        let keys = " q quit   up/down, j/k other pools   space now";
        frame.render_widget(Paragraph::new(Line::styled(keys, Style::new().add_modifier(Modifier::DIM))), foot);
    }

    fn head(&self, top: &Top) -> Paragraph<'static> {
        let status = &top.status;
        let waiting: u64 = top.pools.iter().map(|pool| pool.waiting).sum();
        let state = match status.state {
            RunState::Running => Span::styled("running", Style::new().fg(Color::Green)),
            RunState::Draining => Span::styled("draining", Style::new().fg(Color::Yellow)),
        };
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let first = Line::from(vec![
            Span::styled(format!(" qcp {}", status.version), bold),
            Span::raw(format!("  process {}, ", status.pid)),
            state,
            Span::raw(format!(" for {}", table::span(status.uptime_s))),
            Span::styled(
                self.trouble.as_ref().map(|why| format!("  no answer: {why}")).unwrap_or_default(),
                Style::new().fg(Color::Red),
            ),
        ]);
        let arena = (top.chunks_in_use * 100).checked_div(top.chunks).unwrap_or(0);
        let memory = top.rss_bytes.map(|bytes| format!("  rss {}", table::size(bytes))).unwrap_or_default();
        let waits = Style::new().fg(if waiting > 0 { Color::Yellow } else { Color::Reset });
        let second = Line::from(vec![
            Span::raw(format!(" clients {}  backends {}  ", status.clients, status.backends)),
            Span::styled(format!("waiting {waiting}"), waits),
            Span::raw(format!("  arena {arena}%{memory}")),
        ]);
        Paragraph::new(vec![first, second])
    }

    /// Seconds between the last two, where both are of one process.
    fn seconds(&self) -> Option<(f64, &Top)> {
        let ((now, top), (then, before)) = (self.now.as_ref()?, self.before.as_ref()?);
        let seconds = now.saturating_sub(*then).as_secs_f64();
        (seconds > 0.0 && top.status.pid == before.status.pid).then_some((seconds, before))
    }

    fn draw_cores(&self, top: &Top, frame: &mut Frame<'_>, area: Rect) {
        let before = self.seconds();
        let row = |core: &Core| {
            let old = before.and_then(|(seconds, before)| {
                Some((seconds, before.cores.iter().find(|old| old.shard == core.shard)?))
            });
            let rate = |read: fn(&Counters) -> u64| match old {
                Some((seconds, old)) => per_second(read(&core.counters), read(&old.counters), seconds),
                None => "-".to_owned(),
            };
            let busy = old.map(|(seconds, old)| (core.cpu_s - old.cpu_s).max(0.0) / seconds * 100.0);
            let color = match busy {
                Some(busy) if busy >= 90.0 => Color::Red,
                Some(busy) if busy >= 60.0 => Color::Yellow,
                Some(_) | None => Color::Reset,
            };
            let busy = busy.map_or_else(|| "-".to_owned(), |busy| format!("{busy:.0}%"));
            Row::new([
                number(core.shard.to_string()),
                number(busy).style(Style::new().fg(color)),
                number(core.counters.clients.to_string()),
                number(core.counters.backends.to_string()),
                number(rate(|counters| counters.queries)),
                number(rate(|counters| counters.transactions)),
                number(rate(|counters| counters.bytes_in)),
                number(rate(|counters| counters.bytes_out)),
                number(rate(|counters| counters.waits)),
            ])
        };
        let widths = [5, 6, 8, 9, 9, 9, 9, 9, 8].map(Constraint::Length);
        let titles = ["core", "cpu", "clients", "backends", "query/s", "link/s", "in B/s", "out B/s", "wait/s"];
        let table = Table::new(top.cores.iter().map(row), widths).header(header(titles.map(number)));
        frame.render_widget(table, area);
    }

    fn draw_pools(&self, top: &Top, frame: &mut Frame<'_>, area: Rect) {
        let before = self.seconds();
        let row = |pool: &Pool| {
            let same =
                |old: &&Pool| (&old.server, &old.database, &old.user) == (&pool.server, &pool.database, &pool.user);
            let old = before.and_then(|(seconds, before)| Some((seconds, before.pools.iter().find(same)?)));
            let rate = |read: fn(&Pool) -> u64| match old {
                Some((seconds, old)) => per_second(read(pool), read(old), seconds),
                None => "-".to_owned(),
            };
            // What one took on the average, meanwhile.
            let mean = |time: fn(&Pool) -> u64, count: fn(&Pool) -> u64| {
                let old = old.map(|(_, old)| old)?;
                time(pool).saturating_sub(time(old)).checked_div(count(pool).saturating_sub(count(old)))
            };
            let time = |us: Option<u64>| us.map_or_else(|| "-".to_owned(), micros);
            let style = match pool {
                Pool { in_trouble: true, .. } => Style::new().fg(Color::Red),
                Pool { waiting: 1.., .. } => Style::new().fg(Color::Yellow),
                _ => Style::new(),
            };
            Row::new([
                Cell::new(table::printable(pool.database.clone())),
                Cell::new(table::printable(pool.user.clone())),
                number(format!("{}/{}", pool.active + pool.cleaning, pool.size)),
                number(pool.idle.to_string()),
                number(pool.clients.to_string()),
                number(pool.waiting.to_string()),
                number(table::short_span(pool.oldest_wait_ms)),
                number(rate(|pool| pool.queries)),
                number(time(mean(|pool| pool.query_us, |pool| pool.queries))),
                number(rate(|pool| pool.transactions)),
                number(time(mean(|pool| pool.wait_us, |pool| pool.waits))),
                number(pool.pinned.to_string()),
                number(pool.login.to_string()),
                Cell::new(pool.mode.name()),
                Cell::new(table::printable(pool.server.clone())),
            ])
            .style(style)
        };
        // On a narrow screen the columns on the right are left out.
        let columns: [(&str, u16, bool); 15] = [
            ("database", 13, false),
            ("user", 10, false),
            ("busy", 7, true),
            ("idle", 4, true),
            ("clients", 7, true),
            ("waiting", 7, true),
            ("oldest", 6, true),
            ("query/s", 8, true),
            ("query", 7, true),
            ("tx/s", 8, true),
            ("wait", 7, true),
            ("pinned", 6, true),
            ("login", 5, true),
            ("mode", 9, false),
            ("server", 24, false),
        ];
        let mut room = area.width;
        let fits = columns.iter().take_while(|(_, width, _)| {
            let fits = room >= *width;
            room = room.saturating_sub(width + 1);
            fits
        });
        let count = fits.count();
        let titles = columns[..count].iter().map(|(title, _, is_number)| match is_number {
            true => number(*title),
            false => Cell::new(*title),
        });
        let widths = columns[..count].iter().map(|(title, width, _)| match *title {
            // These are as long as people make them.
            "database" | "user" | "server" => Constraint::Min(*width),
            _ => Constraint::Length(*width),
        });
        let shown = top.pools.iter().skip(self.skipped).map(row);
        let table = Table::new(shown, widths.collect::<Vec<_>>()).header(header(titles));
        frame.render_widget(table, area);
    }
}

fn draw_transactions(top: &Top, frame: &mut Frame<'_>, area: Rect) {
    let row = |transaction: &Transaction| {
        let style = match transaction.since_ms {
            60_000.. => Style::new().fg(Color::Red),
            5_000.. => Style::new().fg(Color::Yellow),
            _ => Style::new(),
        };
        Row::new([
            number(table::short_span(transaction.since_ms)).style(style),
            Cell::new(if transaction.busy { "at work" } else { "idle" }),
            number(transaction.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string())),
            Cell::new(table::printable(transaction.database.clone())),
            Cell::new(table::printable(transaction.user.clone())),
            Cell::new(transaction.client.clone()),
            Cell::new(table::printable(transaction.application.clone())),
            Cell::new(transaction.pinned.clone()),
        ])
    };
    let widths = [
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(14),
        Constraint::Length(11),
        Constraint::Length(21),
        Constraint::Min(6),
        Constraint::Min(0),
    ];
    let titles = ["open", "state", "backend", "database", "user", "client", "application", "pinned by"];
    let titles =
        titles.map(|title| if ["open", "backend"].contains(&title) { number(title) } else { Cell::new(title) });
    let table = Table::new(top.transactions.iter().map(row), widths).header(header(titles));
    frame.render_widget(table, area);
}

fn header<'c>(titles: impl IntoIterator<Item = Cell<'c>>) -> Row<'c> {
    Row::new(titles).style(Style::new().add_modifier(Modifier::REVERSED))
}

/// On the right of its column.
fn number<'c>(text: impl Into<String>) -> Cell<'c> {
    Cell::new(ratatui::text::Text::from(text.into()).right_aligned())
}

/// A rate in few characters: 950, 1.2k, 34k, 5.6M.
fn per_second(now: u64, before: u64, seconds: f64) -> String {
    let rate = now.saturating_sub(before) as f64 / seconds;
    match rate {
        rate if rate < 10.0 && rate > 0.0 => format!("{rate:.1}"),
        rate if rate < 1e3 => format!("{rate:.0}"),
        rate if rate < 1e4 => format!("{:.1}k", rate / 1e3),
        rate if rate < 1e6 => format!("{:.0}k", rate / 1e3),
        rate if rate < 1e9 => format!("{:.1}M", rate / 1e6),
        rate => format!("{:.1}G", rate / 1e9),
    }
}

fn micros(us: u64) -> String {
    match us {
        0..1000 => format!("{us}us"),
        1000..10_000 => format!("{:.1}ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{}ms", us / 1000),
        _ => format!("{:.1}s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn top(seconds: u64) -> Top {
        let counters = Counters {
            clients: 700,
            backends: 20,
            queries: 45_000 * seconds,
            transactions: 44_000 * seconds,
            bytes_in: 5_000_000 * seconds,
            bytes_out: 90_000_000 * seconds,
            waits: 12 * seconds,
        };
        let pool = |number: u64| Pool {
            server: "10.0.0.1:5432".to_owned(),
            database: format!("shop_{number}"),
            user: "app".to_owned(),
            mode: RelayMode::Smart,
            size: 20,
            active: 18,
            idle: 1,
            cleaning: 1,
            login: 0,
            clients: 300,
            waiting: if number == 0 { 7 } else { 0 },
            oldest_wait_ms: if number == 0 { 1520 } else { 0 },
            pinned: 2,
            in_trouble: number == 3,
            queries: 1500 * seconds,
            query_us: 1500 * seconds * 730,
            transactions: 900 * seconds,
            waits: 3 * seconds,
            wait_us: 3 * seconds * 41_000,
        };
        let transaction = |since_ms: u64| Transaction {
            pid: Some(4711),
            database: "shop_0".to_owned(),
            user: "app".to_owned(),
            since_ms,
            busy: since_ms > 10_000,
            pinned: "temp".to_owned(),
            client: "10.1.2.3:40312".to_owned(),
            application: "job\x1b[2J".to_owned(),
        };
        Top {
            status: Status {
                version: "0.1.0".to_owned(),
                pid: 123,
                uptime_s: 90_061,
                state: RunState::Running,
                cores: 2,
                clients: 1400,
                backends: 40,
                listening: Vec::new(),
                config: String::new(),
            },
            cores: (0..2).map(|shard| Core { shard, cpu_s: 0.45 * seconds as f64, counters }).collect(),
            pools: (0..40).map(pool).collect(),
            pools_more: 0,
            transactions: [65_000, 7_000, 120].map(transaction).to_vec(),
            chunks: 1000,
            chunks_in_use: 130,
            rss_bytes: Some(220 << 20),
        }
    }

    fn drawn(screen: &Screen, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("memory is enough");
        terminal.draw(|frame| screen.draw(frame)).expect("it is drawn");
        let buffer = terminal.backend().buffer().clone();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>();
        (0..height).map(|y| line(y).trim_end().to_owned()).collect()
    }

    #[test]
    fn a_small_screen_has_it_all() {
        let mut screen = Screen::default();
        screen.observe(Duration::from_secs(10), top(100));
        assert!(drawn(&screen, 80, 24).iter().any(|line| line.contains("shop_0")), "at once, without rates");
        screen.observe(Duration::from_secs(12), top(102));
        let lines = drawn(&screen, 80, 24);
        let text = lines.join("\n");
        for expected in [
            "qcp 0.1.0  process 123, running for 1d01h",
            "clients 1400  backends 40  waiting 7  arena 13%  rss 220.0 MB",
            // 0.45 s of each second, 45,000 queries in it.
            "45%",
            "45k",
            "1.5k",
            "730us",
            "1m05s",
            "at work",
            "job",
        ] {
            assert!(text.contains(expected), "{expected}:\n{text}");
        }
        let pools = lines.iter().filter(|line| line.contains("shop_") && line.contains("19/20")).count();
        assert!(!text.contains('\u{1b}'), "what clients call themselves moves no cursor");
        assert!(pools >= 8, "{pools} pools:\n{text}");
        assert!(lines[23].contains("q quit"), "{text}");
        screen.scroll(30);
        assert!(drawn(&screen, 80, 24).join("\n").contains("shop_30"));
        screen.scroll(-1000);
        assert!(drawn(&screen, 80, 24).join("\n").contains("shop_1 "));
    }

    #[test]
    fn a_large_one_has_more() {
        let mut screen = Screen::default();
        screen.observe(Duration::from_secs(1), top(1));
        screen.observe(Duration::from_secs(2), top(2));
        let text = drawn(&screen, 200, 60).join("\n");
        for expected in ["10.0.0.1:5432", "41ms", "Smart", "pinned", "shop_39"] {
            assert!(text.contains(expected), "{expected}:\n{text}");
        }
    }

    #[test]
    fn nothing_is_too_small_and_no_answer_is_said() {
        let mut screen = Screen::default();
        screen.note_trouble("nobody there".to_owned());
        assert!(drawn(&screen, 80, 24)[0].contains("nobody there"));
        screen.observe(Duration::from_secs(1), top(1));
        screen.note_trouble("nobody there".to_owned());
        assert!(drawn(&screen, 80, 24)[0].contains("no answer: nobody there"));
        for (width, height) in [(1, 1), (3, 2), (20, 5), (79, 7), (10, 100)] {
            drawn(&screen, width, height);
        }
        // Another process has other counters.
        let mut other = top(0);
        other.status.pid = 124;
        screen.observe(Duration::from_secs(2), other);
        drawn(&screen, 80, 24);
    }
}
