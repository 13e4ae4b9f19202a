//! One form for each JSON value (RFC 8785, the JSON Canonicalization Scheme).
//!
//! Keys sorted by their UTF-16 code units, no white space, strings escaped as ECMAScript does.
//! Numbers are whole here. Those that a double cannot hold (beyond 2^53) have no form in RFC 8785;
//! they keep their digits, because a count that is rounded is a wrong count.

use serde::Serialize;
use serde_json::Value;

/// A value has no canonical form.
#[derive(Debug, thiserror::Error)]
pub enum CanonicalError {
    #[error("not a JSON value")]
    Json(#[from] serde_json::Error),
    #[error("{0} is not a whole number")]
    Fraction(serde_json::Number),
}

/// The value's bytes.
///
/// # Errors
/// It is no JSON, or has a number that is not whole.
pub fn canonical(value: &impl Serialize) -> Result<Vec<u8>, CanonicalError> {
    let mut bytes = Vec::new();
    write(&serde_json::to_value(value)?, &mut bytes)?;
    Ok(bytes)
}

fn write(value: &Value, out: &mut Vec<u8>) -> Result<(), CanonicalError> {
    match value {
        Value::Number(number) if number.is_f64() => {
            return Err(CanonicalError::Fraction(number.clone()));
        }
        // serde_json escapes as ECMAScript does: the short forms, else \u00xx in lower case.
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            serde_json::to_writer(out, value)?;
        }
        Value::Array(values) => {
            out.push(b'[');
            for (at, value) in values.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write(value, out)?;
            }
            out.push(b']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
            out.push(b'{');
            for (at, (key, value)) in members.into_iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                serde_json::to_writer(&mut *out, key)?;
                out.push(b':');
                write(value, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(value: &Value) -> String {
        String::from_utf8(canonical(value).expect("canonical")).expect("UTF-8")
    }

    #[test]
    fn keys_are_sorted_as_utf16_and_strings_escaped_as_in_rfc_8785() {
        // Section 3.2.3 of the RFC, its numbers left out.
        let value = json!({
            "\u{20ac}": "Euro Sign", "\r": "Carriage Return", "\u{fb33}": "Hebrew Letter Dalet With Dagesh",
            "1": "One", "\u{1f600}": "Emoji: Grinning Face", "\u{80}": "Control",
            "\u{f6}": "Latin Small Letter O With Diaeresis"
        });
        let order = [
            "\\r",
            "1",
            "\u{80}",
            "\u{f6}",
            "\u{20ac}",
            "\u{1f600}",
            "\u{fb33}",
        ];
        let text = text(&value);
        let found: Vec<_> = order
            .iter()
            .map(|key| text.find(&format!("\"{key}\":")))
            .collect();
        assert!(
            found.iter().all(Option::is_some) && found.is_sorted(),
            "{text}"
        );
    }

    #[test]
    fn strings_are_escaped_as_in_rfc_8785() {
        let value = json!("\u{20ac}$\u{f}\u{a}A'\u{42}\u{22}\u{5c}\\\"/\u{7f}\u{1b}");
        assert_eq!(
            text(&value),
            "\"\u{20ac}$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\u{7f}\\u001b\""
        );
    }

    #[test]
    fn white_space_goes_and_large_counts_stay_exact() {
        let value: Value =
            serde_json::from_str(" { \"b\" : [ 1 , null , true ] , \"a\" : {} } ").expect("JSON");
        assert_eq!(text(&value), "{\"a\":{},\"b\":[1,null,true]}");
        assert_eq!(
            text(&json!([u64::MAX, i64::MIN])),
            "[18446744073709551615,-9223372036854775808]"
        );
        assert!(matches!(
            canonical(&json!(0.5)),
            Err(CanonicalError::Fraction(_))
        ));
    }
}
