//! Writes the messages that QCP itself sends, to either side, into bytes of the caller's.
//!
//! What is written is always whole messages: one that does not fit leaves no trace and is [`Full`]. The caller sends
//! what there is and tries again, or has sized its buffer so that this cannot happen.

use super::error::{ErrorFields, field};
use super::tag::{TargetKind, TransactionStatus, backend, frontend};
use memchr::memchr;

/// The message did not fit; nothing of it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Parse without types for its parameters: the server finds them out.
pub const NO_PARAMETER_TYPES: &[u8] = &[0, 0];

/// Bind without parameters: no formats, no values, all results as text.
pub const NO_PARAMETERS: &[u8] = &[0, 0, 0, 0, 0, 0];

/// PostgreSQL's type id of `text`.
pub const TEXT_OID: u32 = 25;

/// A column of text in a RowDescription.
const TEXT_TYPE_SIZE: i16 = -1;

pub struct Writer<'a> {
    buffer: &'a mut [u8],
    written: usize,
}

impl<'a> Writer<'a> {
    pub fn new(buffer: &'a mut [u8]) -> Self {
        Writer { buffer, written: 0 }
    }

    pub fn written(&self) -> &[u8] {
        &self.buffer[..self.written]
    }

    pub fn written_size(&self) -> usize {
        self.written
    }

    pub fn free_size(&self) -> usize {
        self.buffer.len() - self.written
    }

    /// Bytes that are messages already, or part of one whose head was written before.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<(), Full> {
        self.whole(|writer| writer.put(bytes))
    }

    /// Takes back what `write` wrote if it does not come to its end.
    pub(super) fn whole(&mut self, write: impl FnOnce(&mut Self) -> Result<(), Full>) -> Result<(), Full> {
        let start = self.written;
        write(self).inspect_err(|Full| self.written = start)
    }

    fn message(&mut self, tag: u8, body: impl FnOnce(&mut Self) -> Result<(), Full>) -> Result<(), Full> {
        self.message_to_be_continued(tag, 0, body)
    }

    /// A message of which `rest_size` more bytes come from elsewhere.
    fn message_to_be_continued(
        &mut self,
        tag: u8,
        rest_size: usize,
        body: impl FnOnce(&mut Self) -> Result<(), Full>,
    ) -> Result<(), Full> {
        self.whole(|writer| {
            writer.put(&[tag])?;
            writer.counted(rest_size, body)
        })
    }

    /// Puts a length before `body` that counts itself, the body and `rest_size` bytes to come.
    pub(super) fn counted(
        &mut self,
        rest_size: usize,
        body: impl FnOnce(&mut Self) -> Result<(), Full>,
    ) -> Result<(), Full> {
        let start = self.written;
        self.put(&[0; 4])?;
        body(self)?;
        let length = u32::try_from(self.written - start + rest_size).map_err(|_| Full)?;
        self.buffer[start..start + 4].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    #[inline]
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<(), Full> {
        let free = &mut self.buffer[self.written..];
        free.get_mut(..bytes.len()).ok_or(Full)?.copy_from_slice(bytes);
        self.written += bytes.len();
        Ok(())
    }

    /// A string with its terminating zero. Ours: names and texts come from decoders and from the configuration, and
    /// neither lets a zero through. A zero here would let the rest of the string be read as something else.
    pub(super) fn put_string(&mut self, string: &[u8]) -> Result<(), Full> {
        assert!(memchr(0, string).is_none(), "a string on the wire has no zero inside");
        self.put(string)?;
        self.put(&[0])
    }

    fn put_count(&mut self, count: usize) -> Result<(), Full> {
        let count = u16::try_from(count).expect("we list fewer than 65,536 items");
        self.put(&count.to_be_bytes())
    }

    /// A value with its size before it, or the mark of NULL.
    fn put_value(&mut self, value: Option<&[u8]>) -> Result<(), Full> {
        let Some(value) = value else {
            return self.put(&(-1i32).to_be_bytes());
        };
        let size = i32::try_from(value.len()).map_err(|_| Full)?;
        self.put(&size.to_be_bytes())?;
        self.put(value)
    }
}

/// To servers.
impl Writer<'_> {
    pub fn query(&mut self, text: &[u8]) -> Result<(), Full> {
        self.message(frontend::QUERY, |w| w.put_string(text))
    }

    /// A Query whose text is put together of these.
    pub fn query_parts(&mut self, parts: &[&[u8]]) -> Result<(), Full> {
        self.message(frontend::QUERY, |w| {
            for part in parts {
                w.put(part)?;
            }
            w.put(&[0])
        })
    }

    /// `parameter_types` as on the wire: a count and as many type ids; [`NO_PARAMETER_TYPES`], or what
    /// [`Parse`](super::reader::Parse) gave.
    pub fn parse(&mut self, name: &[u8], query: &[u8], parameter_types: &[u8]) -> Result<(), Full> {
        self.message(frontend::PARSE, |w| {
            w.put_string(name)?;
            w.put_string(query)?;
            w.put(parameter_types)
        })
    }

    /// The beginning of a Parse with another name: what follows the name, `rest_size` bytes, the caller forwards.
    pub fn parse_head(&mut self, name: &[u8], rest_size: usize) -> Result<(), Full> {
        self.message_to_be_continued(frontend::PARSE, rest_size, |w| w.put_string(name))
    }

    /// `parameters` as on the wire, from the parameter formats on; [`NO_PARAMETERS`], or what followed the names.
    pub fn bind(&mut self, portal: &[u8], statement: &[u8], parameters: &[u8]) -> Result<(), Full> {
        self.message(frontend::BIND, |w| {
            w.put_string(portal)?;
            w.put_string(statement)?;
            w.put(parameters)
        })
    }

    /// The beginning of a Bind with another statement: what follows the names, `rest_size` bytes, the caller forwards.
    pub fn bind_head(&mut self, portal: &[u8], statement: &[u8], rest_size: usize) -> Result<(), Full> {
        self.message_to_be_continued(frontend::BIND, rest_size, |w| {
            w.put_string(portal)?;
            w.put_string(statement)
        })
    }

    /// Parameters and results all as text.
    pub fn bind_text(&mut self, portal: &[u8], statement: &[u8], values: &[Option<&[u8]>]) -> Result<(), Full> {
        self.message(frontend::BIND, |w| {
            w.put_string(portal)?;
            w.put_string(statement)?;
            w.put_count(0)?;
            w.put_count(values.len())?;
            values.iter().try_for_each(|value| w.put_value(*value))?;
            w.put_count(0)
        })
    }

    pub fn describe(&mut self, kind: TargetKind, name: &[u8]) -> Result<(), Full> {
        self.target(frontend::DESCRIBE, kind, name)
    }

    pub fn close(&mut self, kind: TargetKind, name: &[u8]) -> Result<(), Full> {
        self.target(frontend::CLOSE, kind, name)
    }

    fn target(&mut self, tag: u8, kind: TargetKind, name: &[u8]) -> Result<(), Full> {
        self.message(tag, |w| {
            w.put(&[kind.as_byte()])?;
            w.put_string(name)
        })
    }

    /// `rows_max` 0 is all of them.
    pub fn execute(&mut self, portal: &[u8], rows_max: i32) -> Result<(), Full> {
        self.message(frontend::EXECUTE, |w| {
            w.put_string(portal)?;
            w.put(&rows_max.to_be_bytes())
        })
    }

    pub fn sync(&mut self) -> Result<(), Full> {
        self.message(frontend::SYNC, |_| Ok(()))
    }

    pub fn flush(&mut self) -> Result<(), Full> {
        self.message(frontend::FLUSH, |_| Ok(()))
    }

    pub fn terminate(&mut self) -> Result<(), Full> {
        self.message(frontend::TERMINATE, |_| Ok(()))
    }

    pub fn copy_fail(&mut self, reason: &[u8]) -> Result<(), Full> {
        self.message(frontend::COPY_FAIL, |w| w.put_string(reason))
    }

    /// Has the same form in both directions.
    pub fn copy_data(&mut self, data: &[u8]) -> Result<(), Full> {
        self.message(frontend::COPY_DATA, |w| w.put(data))
    }

    /// Has the same form in both directions.
    pub fn copy_done(&mut self) -> Result<(), Full> {
        self.message(frontend::COPY_DONE, |_| Ok(()))
    }

    /// The password in clear, or its md5 answer.
    pub fn password(&mut self, password: &[u8]) -> Result<(), Full> {
        self.message(frontend::PASSWORD, |w| w.put_string(password))
    }

    pub fn sasl_initial_response(&mut self, mechanism: &[u8], data: Option<&[u8]>) -> Result<(), Full> {
        self.message(frontend::PASSWORD, |w| {
            w.put_string(mechanism)?;
            w.put_value(data)
        })
    }

    pub fn sasl_response(&mut self, data: &[u8]) -> Result<(), Full> {
        self.message(frontend::PASSWORD, |w| w.put(data))
    }
}

/// The codes of the Authentication messages.
pub(super) mod authentication {
    pub const OK: u32 = 0;
    pub const CLEARTEXT_PASSWORD: u32 = 3;
    pub const MD5_PASSWORD: u32 = 5;
    pub const GSS: u32 = 7;
    pub const GSS_CONTINUE: u32 = 8;
    pub const SSPI: u32 = 9;
    pub const SASL: u32 = 10;
    pub const SASL_CONTINUE: u32 = 11;
    pub const SASL_FINAL: u32 = 12;
}

/// To clients.
impl Writer<'_> {
    pub fn authentication_ok(&mut self) -> Result<(), Full> {
        self.authentication(authentication::OK, |_| Ok(()))
    }

    pub fn authentication_cleartext_password(&mut self) -> Result<(), Full> {
        self.authentication(authentication::CLEARTEXT_PASSWORD, |_| Ok(()))
    }

    pub fn authentication_md5_password(&mut self, salt: [u8; 4]) -> Result<(), Full> {
        self.authentication(authentication::MD5_PASSWORD, |w| w.put(&salt))
    }

    /// The mechanisms, best first.
    pub fn authentication_sasl(&mut self, mechanisms: &[&[u8]]) -> Result<(), Full> {
        self.authentication(authentication::SASL, |w| {
            mechanisms.iter().try_for_each(|mechanism| w.put_string(mechanism))?;
            w.put(&[0])
        })
    }

    pub fn authentication_sasl_continue(&mut self, data: &[u8]) -> Result<(), Full> {
        self.authentication(authentication::SASL_CONTINUE, |w| w.put(data))
    }

    pub fn authentication_sasl_final(&mut self, data: &[u8]) -> Result<(), Full> {
        self.authentication(authentication::SASL_FINAL, |w| w.put(data))
    }

    fn authentication(&mut self, code: u32, body: impl FnOnce(&mut Self) -> Result<(), Full>) -> Result<(), Full> {
        self.message(backend::AUTHENTICATION, |w| {
            w.put(&code.to_be_bytes())?;
            body(w)
        })
    }

    pub fn parameter_status(&mut self, name: &[u8], value: &[u8]) -> Result<(), Full> {
        self.message(backend::PARAMETER_STATUS, |w| {
            w.put_string(name)?;
            w.put_string(value)
        })
    }

    pub fn backend_key_data(&mut self, process_id: u32, key: &[u8]) -> Result<(), Full> {
        self.message(backend::BACKEND_KEY_DATA, |w| {
            w.put(&process_id.to_be_bytes())?;
            w.put(key)
        })
    }

    pub fn ready_for_query(&mut self, status: TransactionStatus) -> Result<(), Full> {
        self.message(backend::READY_FOR_QUERY, |w| w.put(&[status.as_byte()]))
    }

    pub fn error_response(&mut self, fields: &ErrorFields<'_>) -> Result<(), Full> {
        self.message(backend::ERROR_RESPONSE, |w| w.put_fields(fields))
    }

    pub fn notice_response(&mut self, fields: &ErrorFields<'_>) -> Result<(), Full> {
        self.message(backend::NOTICE_RESPONSE, |w| w.put_fields(fields))
    }

    fn put_fields(&mut self, fields: &ErrorFields<'_>) -> Result<(), Full> {
        let severity = fields.severity.as_str();
        self.put_field(field::SEVERITY_LOCALIZED, severity)?;
        self.put_field(field::SEVERITY, severity)?;
        self.put_field(field::CODE, fields.code.as_str())?;
        self.put_field(field::MESSAGE, fields.message)?;
        if let Some(detail) = fields.detail {
            self.put_field(field::DETAIL, detail)?;
        }
        if let Some(hint) = fields.hint {
            self.put_field(field::HINT, hint)?;
        }
        self.put(&[0])
    }

    /// A text may quote what somebody sent, so a zero ends it here instead of being ours to answer for.
    fn put_field(&mut self, kind: u8, text: &str) -> Result<(), Full> {
        let text = text.split('\0').next().unwrap_or_default();
        self.put(&[kind])?;
        self.put_string(text.as_bytes())
    }

    /// `minor` is the newest of protocol 3 that is spoken here; `options` are the `_pq_.` ones not understood.
    pub fn negotiate_protocol_version<'o>(
        &mut self,
        version: u32,
        options: impl Iterator<Item = &'o [u8]>,
    ) -> Result<(), Full> {
        self.message(backend::NEGOTIATE_PROTOCOL_VERSION, |w| {
            w.put(&version.to_be_bytes())?;
            let count_at = w.written;
            w.put(&[0; 4])?;
            let mut count = 0u32;
            for option in options {
                w.put_string(option)?;
                count += 1;
            }
            w.buffer[count_at..count_at + 4].copy_from_slice(&count.to_be_bytes());
            Ok(())
        })
    }

    pub fn parse_complete(&mut self) -> Result<(), Full> {
        self.message(backend::PARSE_COMPLETE, |_| Ok(()))
    }

    pub fn bind_complete(&mut self) -> Result<(), Full> {
        self.message(backend::BIND_COMPLETE, |_| Ok(()))
    }

    pub fn close_complete(&mut self) -> Result<(), Full> {
        self.message(backend::CLOSE_COMPLETE, |_| Ok(()))
    }

    pub fn no_data(&mut self) -> Result<(), Full> {
        self.message(backend::NO_DATA, |_| Ok(()))
    }

    pub fn portal_suspended(&mut self) -> Result<(), Full> {
        self.message(backend::PORTAL_SUSPENDED, |_| Ok(()))
    }

    pub fn empty_query_response(&mut self) -> Result<(), Full> {
        self.message(backend::EMPTY_QUERY_RESPONSE, |_| Ok(()))
    }

    pub fn command_complete(&mut self, command: &[u8]) -> Result<(), Full> {
        self.message(backend::COMMAND_COMPLETE, |w| w.put_string(command))
    }

    /// The type ids of a statement's parameters.
    pub fn parameter_description(&mut self, types: &[u32]) -> Result<(), Full> {
        self.message(backend::PARAMETER_DESCRIPTION, |w| {
            w.put_count(types.len())?;
            types.iter().try_for_each(|oid| w.put(&oid.to_be_bytes()))
        })
    }

    /// Columns of text.
    pub fn row_description(&mut self, columns: &[&[u8]]) -> Result<(), Full> {
        self.describe_columns(columns.len(), columns.iter().map(|name| (*name, TEXT_OID, TEXT_TYPE_SIZE, false)))
    }

    /// Columns by name, type id, the type's size, and whether their values come in binary.
    pub fn typed_row_description(&mut self, columns: &[(&[u8], u32, i16, bool)]) -> Result<(), Full> {
        self.describe_columns(columns.len(), columns.iter().copied())
    }

    fn describe_columns<'n>(
        &mut self,
        count: usize,
        mut columns: impl Iterator<Item = (&'n [u8], u32, i16, bool)>,
    ) -> Result<(), Full> {
        self.message(backend::ROW_DESCRIPTION, |w| {
            w.put_count(count)?;
            columns.try_for_each(|(name, type_id, type_size, binary)| {
                w.put_string(name)?;
                w.put(&0u32.to_be_bytes())?; // of no table
                w.put(&0u16.to_be_bytes())?; // nor a column of one
                w.put(&type_id.to_be_bytes())?;
                w.put(&type_size.to_be_bytes())?;
                w.put(&(-1i32).to_be_bytes())?; // no type modifier
                w.put(&u16::from(binary).to_be_bytes())
            })
        })
    }

    pub fn data_row(&mut self, values: &[Option<&[u8]>]) -> Result<(), Full> {
        self.message(backend::DATA_ROW, |w| {
            w.put_count(values.len())?;
            values.iter().try_for_each(|value| w.put_value(*value))
        })
    }

    pub fn notification_response(&mut self, process_id: u32, channel: &[u8], payload: &[u8]) -> Result<(), Full> {
        self.message(backend::NOTIFICATION_RESPONSE, |w| {
            w.put(&process_id.to_be_bytes())?;
            w.put_string(channel)?;
            w.put_string(payload)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::{Severity, SqlState};
    use super::super::reader;
    use super::*;
    use proptest::prelude::*;

    fn check(expected: &[u8], write: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>) {
        let mut buffer = [0; 200];
        let mut writer = Writer::new(&mut buffer);
        assert_eq!(write(&mut writer), Ok(()));
        assert_eq!(writer.written(), expected);
        assert_eq!(writer.written_size() + writer.free_size(), 200);
    }

    #[test]
    fn writes_the_bytes_of_the_manual() {
        check(b"Q\0\0\0\x06;\0", |w| w.query(b";"));
        check(b"P\0\0\0\x0as\0;\0\0\0", |w| w.parse(b"s", b";", NO_PARAMETER_TYPES));
        check(b"B\0\0\0\x0d\0s\0\0\0\0\0\0\0", |w| w.bind(b"", b"s", NO_PARAMETERS));
        check(b"C\0\0\0\x07Ss\0", |w| w.close(TargetKind::Statement, b"s"));
        check(b"E\0\0\0\x09\0\0\0\0\x02", |w| w.execute(b"", 2));
        check(b"S\0\0\0\x04H\0\0\0\x04X\0\0\0\x04", |w| {
            w.sync()?;
            w.flush()?;
            w.terminate()
        });
        check(b"p\0\0\0\x0bX\0\0\0\0\x01y", |w| w.sasl_initial_response(b"X", Some(b"y")));
        check(b"R\0\0\0\x0c\0\0\0\x05salt", |w| w.authentication_md5_password(*b"salt"));
        check(b"Z\0\0\0\x05I", |w| w.ready_for_query(TransactionStatus::Idle));
        check(b"v\0\0\0\x0f\0\x03\0\x02\0\0\0\x01ab\0", |w| {
            w.negotiate_protocol_version(0x0003_0002, [&b"ab"[..]].into_iter())
        });
        check(b"E\0\0\0\x1dSFATAL\0VFATAL\0C57P01\0Mx\0\0", |w| {
            w.error_response(&ErrorFields::fatal(SqlState::ADMIN_SHUTDOWN, "x"))
        });
    }

    #[test]
    fn what_does_not_fit_leaves_no_trace() {
        let mut buffer = [0; 12];
        let mut writer = Writer::new(&mut buffer);
        assert_eq!(writer.sync(), Ok(()));
        assert_eq!(writer.query(b"SELECT 1"), Err(Full));
        assert_eq!(writer.raw(b"12345678"), Err(Full));
        assert_eq!(writer.written(), b"S\0\0\0\x04");
        assert_eq!(writer.query(b""), Ok(()));
    }

    #[test]
    #[should_panic(expected = "no zero inside")]
    fn a_zero_in_a_query_is_ours() {
        let _ = Writer::new(&mut [0; 100]).query(b"a\0b");
    }

    #[test]
    fn a_zero_in_an_error_ends_its_text() {
        let mut buffer = [0; 100];
        let mut writer = Writer::new(&mut buffer);
        let fields = ErrorFields::error(SqlState::INTERNAL_ERROR, "a\0C00000").with_hint("b");
        assert_eq!(writer.error_response(&fields), Ok(()));
        let found = reader::fields(writer.written());
        assert_eq!(found.message(), Some(&b"a"[..]));
        assert_eq!(found.code(), Some(SqlState::INTERNAL_ERROR));
        assert_eq!(found.get(field::HINT), Some(&b"b"[..]));
    }

    proptest! {
        #[test]
        fn an_error_is_read_back(
            message in "[^\0]{0,30}",
            detail in prop::option::of("[^\0]{0,30}"),
            hint in prop::option::of("[^\0]{0,30}"),
            is_fatal in any::<bool>(),
        ) {
            let severity = if is_fatal { Severity::Fatal } else { Severity::Error };
            let mut fields = ErrorFields::new(severity, SqlState::TOO_MANY_CONNECTIONS, &message);
            fields.detail = detail.as_deref();
            fields.hint = hint.as_deref();
            let mut buffer = [0; 1000];
            let mut writer = Writer::new(&mut buffer);
            prop_assert_eq!(writer.error_response(&fields), Ok(()));

            let found = reader::fields(writer.written());
            prop_assert_eq!(found.severity(), Some(severity));
            prop_assert_eq!(found.code(), Some(SqlState::TOO_MANY_CONNECTIONS));
            prop_assert_eq!(found.message(), Some(message.as_bytes()));
            prop_assert_eq!(found.get(field::DETAIL), detail.as_deref().map(str::as_bytes));
            prop_assert_eq!(found.get(field::HINT), hint.as_deref().map(str::as_bytes));
        }

        #[test]
        fn a_bind_with_another_name_is_the_same_bind(
            portal in "[^\0]{0,9}", given in "[^\0]{0,9}", ours in "[^\0]{0,9}",
            values in prop::collection::vec(prop::option::of("[^\0]{0,9}"), 0..5),
        ) {
            let (portal, given, ours) = (portal.as_bytes(), given.as_bytes(), ours.as_bytes());
            let values: Vec<Option<&[u8]>> =
                values.iter().map(|value| value.as_deref().map(str::as_bytes)).collect();
            let written = |write: &dyn Fn(&mut Writer<'_>) -> Result<(), Full>| {
                let mut buffer = [0; 500];
                let mut writer = Writer::new(&mut buffer);
                write(&mut writer).expect("the buffer is large enough");
                writer.written().to_vec()
            };

            let bind = written(&|w| w.bind_text(portal, given, &values));
            let names = reader::bind_names(&bind).expect("valid").expect("whole");
            let rest = &bind[names.statement.end + 1..];
            let spliced = written(&|w| {
                w.bind_head(&bind[names.portal.clone()], ours, rest.len())?;
                w.raw(rest)
            });
            prop_assert_eq!(spliced, written(&|w| w.bind_text(portal, ours, &values)));
        }
    }
}
