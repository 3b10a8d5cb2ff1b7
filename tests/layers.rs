//! Holds the order of the house: which layer may name which, where `unsafe` lives, who may read a clock, and who knows
//! the executor. Read from the source text; code for tests is not looked at.

use std::fmt::Write;
use std::fs;
use std::path::Path;

/// A layer of `src`, and the layers that it may name.
struct Layer {
    name: &'static str,
    may_name: &'static [&'static str],
}

/// From the bottom to the top. `process` and the programs in `bin` may name everything.
const LAYERS: [Layer; 12] = [
    Layer { name: "ids", may_name: &[] },
    Layer { name: "memory", may_name: &[] },
    Layer { name: "protocol", may_name: &[] },
    Layer { name: "sql", may_name: &[] },
    Layer { name: "auth", may_name: &["protocol"] },
    Layer { name: "session", may_name: &["protocol", "auth", "sql"] },
    Layer { name: "pool", may_name: &["ids"] },
    Layer { name: "io", may_name: &["memory", "ids"] },
    // What a layer is asked for on the control socket has one shape, and that shape is control's.
    Layer {
        name: "shard",
        may_name: &["ids", "memory", "protocol", "sql", "auth", "session", "pool", "io", "control::report"],
    },
    // Fills in the settings that these layers declare.
    Layer { name: "config", may_name: &["session", "pool", "auth"] },
    // Asks the real loader what it takes.
    Layer { name: "import", may_name: &["config"] },
    Layer { name: "control", may_name: &["protocol"] },
];

/// Single files that may name more than their layer.
const MAY_NAME_MORE: [(&str, &[&str]); 1] = [
    // Adds up what every table of the house takes, and says so in control's words.
    ("config/sums.rs", &["memory", "io", "shard", "control::report"]),
];

const MAY_BE_UNSAFE: [&str; 2] = ["memory/", "io/"];
const MAY_READ_THE_CLOCK: [&str; 3] = ["io/", "process/", "bin/"];
const MAY_NAME_THE_EXECUTOR: [&str; 2] = ["io/", "process/"];

/// A file of `src`, without comments, strings and code for tests.
struct Source {
    /// Relative to `src`.
    path: String,
    lines: Vec<String>,
}

impl Source {
    /// The layer that the file belongs to.
    fn layer(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap_or_default()
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.path.starts_with(place))
    }

    /// How many `super` lead to the root of the crate.
    fn depth(&self) -> usize {
        self.path.trim_end_matches("/mod.rs").split('/').count()
    }

    fn may_name(&self, named: &str) -> bool {
        let own = LAYERS.iter().find(|layer| layer.name == self.layer());
        let own = own.map_or(&[][..], |layer| layer.may_name);
        let more = MAY_NAME_MORE.iter().find(|(path, _)| *path == self.path);
        let more = more.map_or(&[][..], |(_, more)| more);
        named == self.layer() || own.iter().chain(more).any(|allowed| is_path_within(named, allowed))
    }
}

#[test]
fn layers_look_down_only() {
    let mut wrong = String::new();
    for source in sources() {
        if source.is_in(&["bin/", "process/", "lib.rs"]) {
            continue;
        }
        let is_known = LAYERS.iter().any(|layer| layer.name == source.layer());
        assert!(is_known, "src/{}: a layer that this table does not know", source.path);
        for (index, line) in source.lines.iter().enumerate() {
            for named in paths_from_the_root(line, source.depth()) {
                // `crate::control::report` counts as `control::report`, `crate::control` as `control`.
                if named.split("::").next() != Some(source.layer()) && !source.may_name(&named) {
                    let _ =
                        writeln!(wrong, "src/{}:{}: {} may not name {named}", source.path, index + 1, source.layer());
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn unsafe_lives_in_memory_and_io() {
    let mut wrong = find_words(&["unsafe"], &MAY_BE_UNSAFE, "no unsafe here");
    for source in sources() {
        let is_root_of_layer = matches!(source.path.split('/').collect::<Vec<_>>()[..], [_, "mod.rs"] | ["bin", _]);
        let forbids = source.lines.iter().any(|line| line.contains("#![forbid(unsafe_code)]"));
        if is_root_of_layer && !source.is_in(&MAY_BE_UNSAFE) && !forbids {
            let _ = writeln!(wrong, "src/{}:1: #![forbid(unsafe_code)] is missing", source.path);
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn time_comes_in_as_an_argument() {
    let wrong = find_words(&["Instant::now", "SystemTime::now"], &MAY_READ_THE_CLOCK, "no clock here");
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn the_executor_is_named_in_io_and_process_only() {
    let wrong = find_words(&["glommio", "io_uring"], &MAY_NAME_THE_EXECUTOR, "the executor is not known here");
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn names_are_found_however_they_are_written() {
    let check =
        |line: &str, depth: usize, expected: &[&str]| assert_eq!(paths_from_the_root(line, depth), expected, "{line}");
    check("use crate::pool::{Part, Waiters};", 1, &["pool::"]);
    check("use crate::{memory::Arena, io::{ring, park}};", 1, &["memory::Arena", "io::"]);
    check("let size = crate::session::pipeline::SIZE;", 2, &["session::pipeline::SIZE"]);
    check("use super::shard::Shard;", 1, &["shard::Shard"]);
    check("use super::super::shard;", 2, &["shard"]);
    check("use super::framer;", 2, &[]);
    check("use std::io;", 1, &[]);
}

/// Places outside `allowed` where one of some words stands.
fn find_words(words: &[&str], allowed: &[&str], complaint: &str) -> String {
    let mut wrong = String::new();
    for source in sources() {
        if source.is_in(allowed) {
            continue;
        }
        for (index, line) in source.lines.iter().enumerate() {
            let found = words.iter().find(|word| has_word(line, word));
            if let Some(word) = found {
                let _ = writeln!(wrong, "src/{}:{}: {word}: {complaint}", source.path, index + 1);
            }
        }
    }
    wrong
}

fn has_word(line: &str, word: &str) -> bool {
    let is_part_of_word = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(word).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        let after = line[start + word.len()..].chars().next();
        !before.is_some_and(is_part_of_word) && !after.is_some_and(is_part_of_word)
    })
}

/// Whether a path names something at or below another.
fn is_path_within(named: &str, allowed: &str) -> bool {
    named.strip_prefix(allowed).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// What a line names from the root of the crate, without `crate::` itself; `crate::{a, b}` names both. Written with
/// `super` it is the same.
fn paths_from_the_root(line: &str, depth: usize) -> Vec<String> {
    let supers = "super::".repeat(depth);
    let mut named = Vec::new();
    for root in ["crate::", supers.as_str()] {
        for (start, _) in line.match_indices(root) {
            let is_longer = line[..start].ends_with("super::") || line[..start].ends_with('$');
            let after = &line[start + root.len()..];
            if is_longer || after.starts_with("super::") {
                continue;
            }
            let is_path = |character: char| character.is_alphanumeric() || "_:".contains(character);
            let path = |text: &str| text.chars().take_while(|character| is_path(*character)).collect::<String>();
            match after.strip_prefix('{') {
                Some(list) => named.extend(top_level_items(list).iter().map(|item| path(item))),
                None => named.push(path(after)),
            }
        }
    }
    named.retain(|path| !path.is_empty());
    named
}

/// The items of a list in braces, without what is in braces within.
fn top_level_items(list: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut depth = 1;
    for character in list.chars() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => items.push(String::new()),
            character if depth == 1 && !character.is_whitespace() => {
                items.last_mut().expect("never empty").push(character);
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    items
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("src can be read").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if is_code(&path) {
                let text = fs::read_to_string(&path).expect("src can be read");
                let path = path.strip_prefix(&root).expect("found below it").display().to_string();
                sources.push(Source { path, lines: code_lines(&text) });
            }
        }
    }
    assert!(sources.len() > 10, "src was not found");
    sources
}

fn is_code(path: &Path) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let is_for_tests = stem == "tests" || stem.ends_with("_tests") || stem == "properties";
    path.extension().is_some_and(|extension| extension == "rs") && !is_for_tests
}

/// Lines with comments and the insides of strings blanked, up to the tests at the end of the file. A `use` that spans
/// lines is put on its first.
fn code_lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut use_begun: Option<usize> = None;
    for line in text.lines() {
        if line.trim() == "mod tests {" {
            break;
        }
        let line = without_strings(line.split("//").next().unwrap_or_default());
        if let Some(first) = use_begun {
            lines[first] += line.trim();
            lines.push(String::new());
        } else {
            let trimmed = line.trim_start().trim_start_matches("pub ");
            if trimmed.starts_with("use ") && !line.contains(';') {
                use_begun = Some(lines.len());
            }
            lines.push(line.clone());
        }
        if line.contains(';') {
            use_begun = None;
        }
    }
    lines
}

fn without_strings(line: &str) -> String {
    let mut is_inside = false;
    line.split('"').fold(String::new(), |mut kept, part| {
        if !is_inside {
            kept += part;
        }
        is_inside = !is_inside;
        kept
    })
}
