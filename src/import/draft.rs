//! The configuration that is being made: settings by path, written as YAML with a comment on each line that says where
//! it comes from.

use std::fmt::Write;

/// What stands at the end of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// A number, a duration or a word that YAML takes for nothing else.
    Bare(String),
    /// Anything; in quotes.
    Text(String),
    List(Vec<String>),
    /// A map of one key.
    Pair(&'static str, String),
}

/// One key of the configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setting {
    pub path: Vec<String>,
    pub value: Value,
}

impl Setting {
    pub fn new<'a>(path: impl IntoIterator<Item = &'a str>, value: Value) -> Setting {
        Setting { path: path.into_iter().map(str::to_owned).collect(), value }
    }

    /// As messages about configurations name it.
    pub fn name(&self) -> String {
        self.path.join(".")
    }
}

enum Node {
    Leaf { value: Value, comment: String },
    Map(Vec<(String, Node)>),
}

/// The settings with their comments, nested. Of two of one path the later counts.
pub fn render<'a>(settings: impl IntoIterator<Item = (&'a Setting, String)>) -> String {
    let mut root = Vec::new();
    for (setting, comment) in settings {
        place(&mut root, &setting.path, Node::Leaf { value: setting.value.clone(), comment });
    }
    let mut text = String::new();
    write_map(&mut text, &root, 0);
    text
}

fn place(map: &mut Vec<(String, Node)>, path: &[String], leaf: Node) {
    let [key, rest @ ..] = path else { return };
    let at = map.iter().position(|(known, _)| known == key).unwrap_or_else(|| {
        map.push((key.clone(), Node::Map(Vec::new())));
        map.len() - 1
    });
    let node = &mut map[at].1;
    match (rest, node) {
        ([], node) => *node = leaf,
        (rest, Node::Map(inner)) => place(inner, rest, leaf),
        // A key is a map or has a value; no setting of ours is both.
        (_, Node::Leaf { .. }) => {}
    }
}

fn write_map(text: &mut String, map: &[(String, Node)], depth: usize) {
    for (key, node) in map {
        let _ = write!(text, "{:1$}{2}:", "", depth * 2, scalar(key));
        match node {
            Node::Map(inner) => {
                text.push('\n');
                write_map(text, inner, depth + 1);
            }
            Node::Leaf { value, comment } => {
                let _ = write!(text, " {}", written(value));
                if !comment.is_empty() {
                    let _ = write!(text, "  # {}", printable(comment));
                }
                text.push('\n');
            }
        }
    }
}

fn written(value: &Value) -> String {
    match value {
        Value::Bare(text) => text.clone(),
        Value::Text(text) => quoted(text),
        Value::List(texts) => {
            let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
            format!("[{}]", texts.join(", "))
        }
        Value::Pair(key, text) => format!("{{{key}: {}}}", quoted(text)),
    }
}

/// A key: without quotes where YAML cannot take it for something else.
fn scalar(text: &str) -> String {
    const WORDS: [&str; 8] = ["true", "false", "yes", "no", "on", "off", "null", "y"];
    let is_word = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let is_plain = is_word && text.starts_with(|c: char| c.is_ascii_lowercase()) && text.len() > 1;
    if is_plain && !WORDS.contains(&text) { text.to_owned() } else { quoted(text) }
}

/// In YAML's double quotes, with all that is not plainly printable escaped.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if is_printable(c) => quoted.push(c),
            c if u32::from(c) > 0xffff => {
                let _ = write!(quoted, "\\U{:08x}", u32::from(c));
            }
            c => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
        }
    }
    quoted + "\""
}

/// For a comment or a message: one line, whatever a file has in it.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if is_printable(c) { c } else { '?' }).collect()
}

fn is_printable(c: char) -> bool {
    c == ' ' || c.is_ascii_graphic() || (c.is_alphanumeric() && u32::from(c) <= 0xffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_nest_and_carry_comments() {
        let settings = [
            Setting::new(["pool", "size"], Value::Bare("5".to_owned())),
            Setting::new(["databases", "a \"b\"", "servers"], Value::List(vec!["h:1".to_owned(), "i:2".to_owned()])),
            Setting::new(["pool", "lifetime"], Value::Bare("1h".to_owned())),
            Setting::new(["databases", "null", "dbname"], Value::Text("it's\n\u{1f600}".to_owned())),
            Setting::new(["log_output"], Value::Pair("file", "/tmp/x".to_owned())),
            Setting::new(["pool", "size"], Value::Bare("6".to_owned())),
        ];
        let text = render(settings.iter().map(|setting| (setting, "from\nthere".to_owned())));
        let expected = "\
pool:
  size: 6  # from?there
  lifetime: 1h  # from?there
databases:
  \"a \\\"b\\\"\":
    servers: [\"h:1\", \"i:2\"]  # from?there
  \"null\":
    dbname: \"it's\\u000a\\U0001f600\"  # from?there
log_output: {file: \"/tmp/x\"}  # from?there
";
        assert_eq!(text, expected);
        assert!(serde_yaml::from_str::<serde_yaml::Value>(&text).is_ok());
    }
}
