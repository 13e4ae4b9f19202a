//! Licences of everything we link: each must be one that Apache-2.0 software may be shipped with.
//!
//! `deny.toml` says the same to cargo-deny, which looks at more.

use serde_json::Value;

const ACCEPTED: [&str; 14] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "NCSA",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages of `cargo metadata`'s whole graph whose licence is not accepted.
pub(super) fn violations(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    packages
        .filter(|package| !package["license"].as_str().is_some_and(is_accepted))
        .map(|package| {
            format!(
                "{} {}: licence {}",
                package["name"], package["version"], package["license"]
            )
        })
        .collect()
}

/// May we choose accepted licences only, under this SPDX expression?
fn is_accepted(expression: &str) -> bool {
    // `/` is an old way to write OR.
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    either(&mut words) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn either(words: &mut Words<'_>) -> bool {
    let mut accepted = both(words);
    while words.next_if_eq(&"OR").is_some() {
        accepted |= both(words);
    }
    accepted
}

fn both(words: &mut Words<'_>) -> bool {
    let mut accepted = one(words);
    while words.next_if_eq(&"AND").is_some() {
        accepted &= one(words);
    }
    accepted
}

fn one(words: &mut Words<'_>) -> bool {
    match words.next() {
        Some("(") => either(words) & words.next_if_eq(&")").is_some(),
        Some(licence) if words.next_if_eq(&"WITH").is_some() => {
            let exception = words.next().unwrap_or_default();
            ACCEPTED.contains(&format!("{licence} WITH {exception}").as_str())
        }
        Some(licence) => ACCEPTED.contains(&licence),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accepted_alternative_is_enough_and_every_part_is_needed() {
        for accepted in [
            "MIT OR Apache-2.0",
            "MIT/GPL-2.0",
            "GPL-2.0 OR MIT",
            "ISC AND MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "MIT AND (GPL-2.0 OR ISC)",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
        ] {
            assert!(is_accepted(accepted), "{accepted}");
        }
        for refused in [
            "GPL-2.0",
            "MIT AND GPL-2.0",
            "",
            "MIT AND (GPL-2.0 OR AGPL-3.0)",
            "(MIT OR Apache-2.0) AND GPL-2.0",
            "(MIT",
            "MIT)",
            "GPL-2.0 WITH Classpath-exception-2.0",
        ] {
            assert!(!is_accepted(refused), "{refused}");
        }
    }

    #[test]
    fn a_package_without_a_licence_is_named() {
        let metadata = serde_json::json!({"packages": [
            {"name": "good", "version": "1.0.0", "license": "MIT"},
            {"name": "bad", "version": "2.0.0", "license": null},
        ]});
        assert_eq!(violations(&metadata), ["\"bad\" \"2.0.0\": licence null"]);
    }
}
