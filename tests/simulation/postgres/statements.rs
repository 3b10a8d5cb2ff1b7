//! What each statement does, and COPY from the client, which one of them begins.

use super::*;

impl Session {
    pub(super) fn run(&mut self, text: &str, by: By, from: usize, most: usize) -> Ran {
        if let Err((code, why)) = self.aborted(text) {
            self.fail(code, &why);
            return Ran::Failed;
        }
        self.begin_implicit();
        let mark = wire::mark(text.as_bytes());
        if from == 0 {
            self.effects.executed.extend(mark);
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        let number = |name: &str| {
            let value = words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            value.map_or(0, |value| value.parse().expect("the simulation writes numbers"))
        };
        let name = mark.map_or_else(|| "nobody".to_owned(), |mark| mark.to_string());
        match &*words[0].to_lowercase() {
            "echo" => {
                if by == By::Query {
                    self.put_row_description();
                }
                let rows: usize = number("rows").max(1);
                let padding = "x".repeat(number("size"));
                for row in (from..rows).take(most) {
                    self.put_row(&format!("{name} row {row} {padding}"));
                }
                if from.saturating_add(most) < rows {
                    put(&mut self.out, b's', b"");
                } else {
                    self.complete(&format!("SELECT {rows}"));
                }
            }
            "show" => {
                if by == By::Query {
                    self.put_row_description();
                }
                let value = self.setting(&unquoted(words[1])).to_owned();
                self.put_row(&format!("{name} {value}"));
                self.complete("SHOW");
            }
            "begin" => {
                if self.status == Status::Idle {
                    self.status = Status::InBlock;
                } else {
                    self.notice("25001", "pg: there is already a transaction in progress");
                }
                self.complete("BEGIN");
            }
            "commit" => self.end_block(true),
            "rollback" => self.end_block(false),
            "fail" => {
                self.fail("22012", &format!("pg: {name} fails"));
                return Ran::Failed;
            }
            "notice" => {
                self.notice("01000", &format!("pg: {name} notices"));
                self.complete("NOTICE");
            }
            "set" => {
                let value = words[3..].join(" ");
                let value = value.split(" c").next().unwrap_or("").trim_matches('\'').to_owned();
                let setting = unquoted(words[1]);
                if value.starts_with("bad") {
                    self.fail("22023", &format!("pg: invalid value for parameter {setting}"));
                    return Ran::Failed;
                }
                self.settings.insert(setting, value);
                self.complete("SET");
            }
            // How the pooler sets what the server does not report.
            "select" => {
                let mut parts = text.split('\'');
                let (setting, value) = (parts.nth(1).unwrap().to_lowercase(), parts.nth(1).unwrap().to_owned());
                self.settings.insert(setting, value.clone());
                self.put_row_description();
                self.put_row(&value);
                self.complete("SELECT 1");
            }
            "reset" => {
                let setting = unquoted(words[1]);
                match self.defaults.get(&setting).cloned() {
                    Some(value) => self.settings.insert(setting, value),
                    None => self.settings.remove(&setting),
                };
                self.complete("RESET");
            }
            "discard" => {
                if self.status != Status::Idle || !self.rest.is_empty() {
                    self.fail("25001", "pg: DISCARD ALL cannot run inside a transaction block");
                    return Ran::Failed;
                }
                self.statements.clear();
                self.portals.clear();
                self.settings = self.defaults.clone();
                self.complete("DISCARD ALL");
            }
            "deallocate" => {
                self.statements.clear();
                self.complete("DEALLOCATE ALL");
            }
            "copyin" => {
                put(&mut self.out, b'G', &[0, 0, 1, 0, 0]);
                self.flushed = self.out.len();
                self.mode = Mode::CopyIn { by, rows: 0 };
                return Ran::Waits;
            }
            "copyout" => {
                put(&mut self.out, b'H', &[0, 0, 1, 0, 0]);
                let padding = "x".repeat(number("size"));
                for row in 0..number("rows") {
                    put(&mut self.out, b'd', format!("{name} copy {row} {padding}\n").as_bytes());
                }
                put(&mut self.out, b'c', b"");
                self.complete(&format!("COPY {}", number("rows")));
            }
            "sleep" => {
                self.flushed = self.out.len();
                self.mode = Mode::Sleeping { by, mark, ms: number("ms") as u64 };
                return Ran::Waits;
            }
            "die" => self.effects.dies = Some(true),
            verb => {
                self.fail("42601", &format!("pg: syntax error at {verb}"));
                return Ran::Failed;
            }
        }
        Ran::Done
    }

    pub(super) fn end_block(&mut self, commit: bool) {
        let failed = self.status == Status::Failed;
        if self.status == Status::Idle {
            self.notice("25P01", "pg: there is no transaction in progress");
        }
        if let Some(before) = self.before.take()
            && !commit
        {
            self.settings = before;
        }
        self.portals.clear();
        self.status = Status::Idle;
        self.complete(if commit && !failed { "COMMIT" } else { "ROLLBACK" });
    }

    /// A message while COPY FROM STDIN is under way.
    pub(super) fn copy(&mut self, by: By, rows: usize, tag: u8, body: &[u8]) {
        self.mode = Mode::Ready;
        match tag {
            b'd' => self.mode = Mode::CopyIn { by, rows: rows + 1 },
            // "Flush and Sync messages received during copy-in mode are ignored" (COPY Operations).
            b'H' | b'S' => self.mode = Mode::CopyIn { by, rows },
            b'c' => {
                self.complete(&format!("COPY {rows}"));
                self.after(by, Ran::Done);
            }
            b'f' => {
                let why = wire::string(body, &mut 0);
                self.fail("57014", &format!("pg: COPY from stdin failed: {why}"));
                self.after(by, Ran::Failed);
            }
            _ => {
                self.fail("08P01", "pg: unexpected message type during COPY from stdin");
                self.after(by, Ran::Failed);
            }
        }
    }
}

pub(super) fn returns_rows(text: &str) -> bool {
    matches!(text.split_whitespace().next(), Some("echo" | "show"))
}

fn unquoted(word: &str) -> String {
    word.trim_matches(['"', '\'']).to_lowercase()
}
