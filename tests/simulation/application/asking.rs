//! What an application sends.

use super::*;

/// Texts of prepared statements; the same for all clients.
const TEXTS: [&str; 9] = [
    "echo $1",
    "echo $1 rows=3",
    "echo $1 rows=9 size=40",
    "echo $1 rows=4 size=1500",
    "show application_name $1",
    "begin $1",
    "commit $1",
    "fail $1",
    "bad $1",
];

impl Application {
    pub(super) fn mark(&mut self) -> Mark {
        self.next_request += 1;
        Mark { client: self.id, request: self.next_request }
    }

    /// The next messages, in one write; nothing when it has to wait.
    pub fn act(&mut self, dials: &Dials) -> Vec<u8> {
        let mut messages = Vec::new();
        self.alone = false;
        if let Some(rest) = self.copying.take() {
            if self.reference.is_copying_in() {
                messages = rest;
            } else if rest.last().is_some_and(|last| last[0] == b'S') {
                messages.push(message(b'S', b""));
            }
        } else {
            let number = self.actions.pop_front().expect("the caller has looked");
            let random = &mut Random(self.seed ^ u64::from(number) << 32);
            let count = if random.in_thousand(dials.pipelining) { 1 + random.below(4) } else { 1 };
            for _ in 0..count {
                self.one_action(dials, random, &mut messages);
                if self.copying.is_some() || self.alone {
                    break;
                }
            }
        }
        let bytes = messages.concat();
        self.sent.extend(messages);
        bytes
    }

    pub(super) fn one_action(&mut self, dials: &Dials, random: &mut Random, messages: &mut Vec<Vec<u8>>) {
        let weights = [dials.simple, dials.extended, dials.copy, dials.calls, dials.odd];
        let mut at = random.below(weights.iter().sum::<u32>() as usize) as u32;
        let mut choice = 0;
        while at >= weights[choice] {
            at -= weights[choice];
            choice += 1;
        }
        match choice {
            0 => messages.push(self.simple(dials, random)),
            1 => self.extended(dials, random, messages),
            2 => self.copy(dials, random, messages),
            3 => messages.push(self.call()),
            _ => self.odd(random, messages),
        }
    }

    pub(super) fn simple(&mut self, dials: &Dials, random: &mut Random) -> Vec<u8> {
        self.unnamed = false;
        let count = if random.below(5) == 0 { random.below(4) } else { 1 };
        let texts: Vec<String> = (0..count).map(|_| self.statement(dials, random)).collect();
        message(b'Q', format!("{}\0", texts.join(";")).as_bytes())
    }

    pub(super) fn statement(&mut self, dials: &Dials, random: &mut Random) -> String {
        let mark = self.mark();
        if self.reference.status != Status::Idle && random.below(4) == 0 {
            return format!("{} {mark}", random.one_of(&["commit", "rollback"]));
        }
        if random.in_thousand(dials.errors) {
            return (*random.one_of(&[format!("fail {mark}"), format!("nonsense {mark}")])).clone();
        }
        if random.in_thousand(dials.transactions) {
            return format!("{} {mark}", random.one_of(&["begin", "begin", "commit", "commit", "rollback"]));
        }
        if random.in_thousand(dials.settings) {
            return match random.below(4) {
                0 => format!("set timezone to Zone/{} {mark}", random.below(3)),
                1 => format!("set application_name to bad {mark}"),
                2 => format!("show application_name {mark}"),
                _ => format!("set application_name to name{} {mark}", random.below(5)),
            };
        }
        // What a RESET returns to is the neutral packet's value, so a client with settings of its own cannot be compared.
        if random.in_thousand(dials.discards) && self.startup.is_empty() {
            self.alone = true;
            return format!("{} all", random.one_of(&["discard", "deallocate"]));
        }
        if random.in_thousand(dials.sleeps) {
            return format!("sleep {mark} ms={}", random.one_of(&[1, 20, 400]));
        }
        if random.in_thousand(dials.large) {
            return format!("echo {mark} rows={} size={}", 1 + random.below(20), random.below(9000));
        }
        if random.below(20) == 0 {
            return format!("notice {mark}");
        }
        if random.in_thousand(dials.large) {
            return format!("echo {mark} {}", "y".repeat(random.below(20_000)));
        }
        format!("echo {mark} rows={} size={}", 1 + random.below(4), random.below(60))
    }

    pub(super) fn extended(&mut self, dials: &Dials, random: &mut Random, messages: &mut Vec<Vec<u8>>) {
        let nothing_open = messages.is_empty() && self.sent.is_empty() && self.reference.is_clean();
        if nothing_open && random.below(8) == 0 {
            // To be bound behind the Sync: the pooler has to keep the backend for it.
            messages.push(message(b'P', format!("\0{}\0\0\0", TEXTS[random.below(4)]).as_bytes()));
            messages.push(message(b'S', b""));
            self.unnamed = true;
            self.alone = true;
            return;
        }
        for _ in 0..1 + random.below(3) {
            let named = random.below(2) == 0;
            let name = if named { format!("s{}", random.below(4)) } else { String::new() };
            let mut known = named || self.unnamed;
            if random.below(if named { 3 } else { 2 }) == 0 || !known {
                // Mostly one name means one text, as in an application.
                let at =
                    if random.below(4) == 0 { random.below(TEXTS.len()) } else { name.len() + self.id as usize % 2 };
                messages.push(message(b'P', format!("{name}\0{}\0\0\0", TEXTS[at]).as_bytes()));
                known = true;
                self.unnamed |= !named;
            }
            if random.below(6) == 0 {
                messages.push(message(b'D', format!("S{name}\0").as_bytes()));
            }
            if random.below(8) == 0 {
                messages.push(message(b'H', b""));
            }
            if known && random.below(8) != 0 {
                let portal = if random.below(6) == 0 { "p" } else { "" };
                let mark = self.mark().to_string();
                let padding = if random.in_thousand(dials.large) { random.below(6000) } else { 0 };
                let value = format!("{mark} {}", "z".repeat(padding));
                let mut body = format!("{portal}\0{name}\0").into_bytes();
                body.extend_from_slice(&[0, 0, 0, 1]);
                body.extend_from_slice(&(value.len() as u32).to_be_bytes());
                body.extend_from_slice(value.as_bytes());
                body.extend_from_slice(&[0, 0]);
                messages.push(message(b'B', &body));
                if random.below(5) == 0 {
                    messages.push(message(b'D', format!("P{portal}\0").as_bytes()));
                }
                for _ in 0..*random.one_of(&[0, 1, 1, 1, 1, 1, 2]) {
                    let most: u32 = if random.below(5) == 0 { 2 } else { 0 };
                    let body = [portal.as_bytes(), &[0], &most.to_be_bytes()].concat();
                    messages.push(message(b'E', &body));
                }
                if random.below(10) == 0 {
                    messages.push(message(b'C', format!("P{portal}\0").as_bytes()));
                }
            }
            if random.below(8) == 0 {
                messages.push(message(b'C', format!("S{name}\0").as_bytes()));
                self.unnamed &= named;
            }
        }
        if random.below(10) == 0 {
            messages.push(message(b'H', b""));
            return;
        }
        messages.push(message(b'S', b""));
        // What was bound, the pooler need not keep behind the Sync; what an error cut off was never there.
        self.unnamed = false;
    }

    pub(super) fn copy(&mut self, dials: &Dials, random: &mut Random, messages: &mut Vec<Vec<u8>>) {
        let mark = self.mark();
        if random.below(3) == 0 {
            self.unnamed = false;
            let size = if random.in_thousand(dials.large) { 5000 } else { 30 };
            let text = format!("copyout {mark} rows={} size={size}\0", random.below(20));
            messages.push(message(b'Q', text.as_bytes()));
            return;
        }
        let simple = random.below(2) == 0;
        self.unnamed = false;
        if simple {
            messages.push(message(b'Q', format!("copyin {mark}\0").as_bytes()));
        } else {
            messages.push(message(b'P', b"\0copyin $1\0\0\0"));
            let value = mark.to_string();
            let mut body = b"\0\0\0\0\0\x01".to_vec();
            body.extend_from_slice(&(value.len() as u32).to_be_bytes());
            body.extend_from_slice(value.as_bytes());
            body.extend_from_slice(&[0, 0]);
            messages.push(message(b'B', &body));
            messages.push(message(b'E', b"\0\0\0\0\0"));
            // A Sync that the server may read in copy mode, where it is ignored.
            messages.push(message(if random.in_thousand(dials.odd) { b'S' } else { b'H' }, b""));
        }
        let mut rest = Vec::new();
        for _ in 0..random.below(12) {
            let size = if random.in_thousand(dials.large) { random.below(20_000) } else { random.below(100) };
            rest.push(message(b'd', format!("{mark} data {}", "d".repeat(size)).as_bytes()));
        }
        if random.below(4) == 0 {
            rest.push(message(b'f', b"on a whim\0"));
        } else {
            rest.push(message(b'c', b""));
        }
        if !simple {
            rest.push(message(b'S', b""));
        }
        // Data is sent ahead now and then: the server takes it all the same.
        if random.in_thousand(dials.odd) {
            messages.append(&mut rest);
        } else {
            self.copying = Some(rest);
        }
    }

    pub(super) fn call(&mut self) -> Vec<u8> {
        self.unnamed = false;
        let value = self.mark().to_string();
        let mut body = 1u32.to_be_bytes().to_vec();
        body.extend_from_slice(&[0, 0, 0, 1]);
        body.extend_from_slice(&(value.len() as u32).to_be_bytes());
        body.extend_from_slice(value.as_bytes());
        body.extend_from_slice(&[0, 0]);
        message(b'F', &body)
    }

    /// What no sane driver sends, but PostgreSQL takes.
    pub(super) fn odd(&mut self, random: &mut Random, messages: &mut Vec<Vec<u8>>) {
        self.unnamed = false;
        for _ in 0..1 + random.below(3) {
            match random.below(8) {
                0 => messages.push(message(b'S', b"")),
                1 => messages.push(message(b'c', b"")),
                2 => messages.push(message(b'f', b"why not\0")),
                3 => messages.push(message(b'd', b"nobody reads this")),
                4 => messages.push(message(b'C', format!("Ss{}\0", random.below(4)).as_bytes())),
                5 => messages.push(message(b'E', b"nowhere\0\0\0\0\0")),
                6 => messages.push(message(b'Q', b" \0")),
                _ => messages.push(message(b'D', b"Sqcp_1\0")),
            }
        }
        messages.push(message(b'S', b""));
    }
}
