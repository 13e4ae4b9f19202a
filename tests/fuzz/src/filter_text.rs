//! Filter text to terms or, by libpcap, to programs.

use remora_capture::filter::{
    FILTER_BYTES_MAX, Filter, FilterError, Meaning, Names, compiler, program::Program,
};

/// # Panics
/// A filter does not mean what its text says, or a message breaks its bounds.
pub fn check(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    let filter = match Filter::compile(&text, compiler(Names::Refused)) {
        Ok(filter) => filter,
        Err(error) => return confirm_refusal(&text, &error),
    };
    assert!(filter.text().len() <= FILTER_BYTES_MAX);
    match filter.meaning() {
        // The text that is shown and sent on means the same.
        Meaning::Terms(terms) => {
            let again = Filter::parse(filter.text()).expect("its own text");
            assert_eq!(again, filter);
            let canonical = Filter::from_terms(terms).expect("its own terms");
            assert_eq!(canonical.meaning().terms(), Some(terms));
        }
        Meaning::Programs(programs) => {
            for program in std::iter::once(&programs.ethernet).chain(&programs.raw) {
                let sent = Program::from_bytes(&program.to_bytes());
                assert_eq!(sent.as_ref(), Ok(program), "what is sent is let in");
            }
        }
        Meaning::Unread => panic!("compiled, yet unread"),
    }
}

fn confirm_refusal(text: &str, error: &FilterError) {
    assert!(error.position <= text.len(), "{error:?}");
    for shown in [error.to_string(), error.pointer(text)] {
        assert!(shown.len() < 4096, "{} bytes", shown.len());
        assert!(
            shown.chars().all(|c| c == '\n' || !c.is_control()),
            "{shown:?}"
        );
    }
}
