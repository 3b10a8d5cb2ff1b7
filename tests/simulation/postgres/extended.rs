//! The messages of the extended protocol.

use super::*;

impl Session {
    pub(super) fn extended(&mut self, tag: u8, body: &[u8]) {
        let ran = match tag {
            b'P' => self.parse(body),
            b'B' => self.bind(body),
            b'D' => self.describe(body),
            b'E' => self.execute(body),
            _ => {
                let name = wire::string(body, &mut 1).to_owned();
                if body[0] == b'S' {
                    self.statements.remove(&name);
                } else {
                    self.portals.remove(&name);
                }
                put(&mut self.out, b'3', b"");
                Ok(())
            }
        };
        if let Err((code, text)) = ran {
            self.fail(code, &text);
            self.mode = Mode::Skipping;
        }
    }

    pub(super) fn parse(&mut self, body: &[u8]) -> Result<(), (&'static str, String)> {
        let mut at = 0;
        let (name, text) = (wire::string(body, &mut at).to_owned(), wire::string(body, &mut at).to_owned());
        if name.is_empty() {
            self.statements.remove("");
        }
        self.aborted(&text)?;
        if text.starts_with("bad") {
            return Err(("42601", format!("pg: syntax error in {text}")));
        }
        if !name.is_empty() && self.statements.contains_key(&name) {
            return Err(("42P05", format!("prepared statement \"{name}\" already exists")));
        }
        self.begin_implicit();
        self.statements.insert(name, text);
        put(&mut self.out, b'1', b"");
        Ok(())
    }

    pub(super) fn bind(&mut self, body: &[u8]) -> Result<(), (&'static str, String)> {
        let mut at = 0;
        let (portal, statement) = (wire::string(body, &mut at).to_owned(), wire::string(body, &mut at).to_owned());
        let Some(text) = self.statements.get(&statement) else {
            return Err(("26000", format!("prepared statement \"{statement}\" does not exist")));
        };
        self.aborted(text)?;
        // No formats; one value at most.
        let count = u16::from_be_bytes([body[at + 2], body[at + 3]]);
        let mut value = String::new();
        if count > 0 {
            let size = u32::from_be_bytes(body[at + 4..at + 8].try_into().unwrap()) as usize;
            value = String::from_utf8(body[at + 8..at + 8 + size].to_vec()).unwrap();
        }
        if portal.is_empty() {
            self.portals.remove("");
        } else if self.portals.contains_key(&portal) {
            return Err(("42P03", format!("pg: cursor {portal} already exists")));
        }
        let text = text.replace("$1", &value);
        self.begin_implicit();
        self.portals.insert(portal, Portal { text, position: 0 });
        put(&mut self.out, b'2', b"");
        Ok(())
    }

    pub(super) fn describe(&mut self, body: &[u8]) -> Result<(), (&'static str, String)> {
        let name = wire::string(body, &mut 1).to_owned();
        let text = if body[0] == b'S' {
            let Some(text) = self.statements.get(&name) else {
                return Err(("26000", format!("prepared statement \"{name}\" does not exist")));
            };
            text.clone()
        } else {
            let Some(portal) = self.portals.get(&name) else {
                return Err(("34000", format!("pg: portal {name} does not exist")));
            };
            portal.text.clone()
        };
        if self.status == Status::Failed {
            self.aborted("describe")?;
        }
        if body[0] == b'S' {
            let count = u16::from(text.contains("$1"));
            let mut types = count.to_be_bytes().to_vec();
            types.extend_from_slice(&25u32.to_be_bytes()[..4 * count as usize]);
            put(&mut self.out, b't', &types);
        }
        if returns_rows(&text) {
            self.put_row_description()
        } else {
            put(&mut self.out, b'n', b"")
        }
        Ok(())
    }

    pub(super) fn execute(&mut self, body: &[u8]) -> Result<(), (&'static str, String)> {
        let mut at = 0;
        let name = wire::string(body, &mut at).to_owned();
        let most = u32::from_be_bytes(body[at..at + 4].try_into().unwrap()) as usize;
        let Some(portal) = self.portals.get(&name) else {
            return Err(("34000", format!("pg: portal {name} does not exist")));
        };
        let (text, position) = (portal.text.clone(), portal.position);
        if text.is_empty() {
            put(&mut self.out, b'I', b"");
            return Ok(());
        }
        let most = if most == 0 { usize::MAX } else { most };
        if position == usize::MAX && !returns_rows(&text) {
            return Err(("55000", "pg: portal cannot be run".to_owned()));
        }
        if let Some(portal) = self.portals.get_mut(&name) {
            portal.position = if returns_rows(&text) { position.saturating_add(most) } else { usize::MAX };
        }
        if let Ran::Failed = self.run(&text, By::Execute, position, most) {
            self.mode = Mode::Skipping;
        }
        Ok(())
    }
}
