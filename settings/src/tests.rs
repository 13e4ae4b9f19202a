//! A program with a flag of each kind.

use std::{fs, path::PathBuf};

use clap::{Args, Parser, ValueEnum};

use super::*;

#[derive(Debug, Parser)]
#[command(name = "p", version = "1")]
struct Program {
    #[command(subcommand)]
    command: Do,
    /// What to log
    #[arg(long, global = true, default_value = "info")]
    log: String,
}

#[derive(Debug, Subcommand)]
enum Do {
    Run(Run),
    Other { file: PathBuf },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Colour {
    Red,
    Green,
}

#[derive(Debug, Args)]
struct Run {
    #[arg(long)]
    config: Option<PathBuf>,
    /// Most bytes
    #[arg(long, default_value = "4KiB", value_parser = size)]
    quota: u64,
    #[arg(long, required = true, value_name = "FILE")]
    rules: Vec<PathBuf>,
    #[arg(long, requires = "key")]
    cert: Option<PathBuf>,
    #[arg(long, requires = "cert")]
    key: Option<PathBuf>,
    #[arg(long)]
    json: bool,
    #[arg(long, num_args = 0..=1, default_missing_value = "/pins")]
    pin: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "red")]
    colour: Colour,
    /// Every cargo test has it.
    #[arg(long, env = "CARGO_MANIFEST_DIR", visible_alias = "place")]
    root: PathBuf,
}

fn size(text: &str) -> Result<u64, String> {
    let number = text.strip_suffix("KiB");
    let bytes = match number {
        Some(number) => number.parse::<u64>().ok().map(|number| number << 10),
        None => text.parse().ok(),
    };
    bytes.ok_or_else(|| "use a number with KiB".to_owned())
}

const NOWHERE: Settings = Settings {
    command: "run",
    file: "/nonexistent/remora.toml",
};

/// The program's command line with a settings file.
fn with(text: &str, words: &str) -> Result<(Run, String), String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    fs::write(&path, text).unwrap();
    let line = format!("p run --config {} {words}", path.display());
    let parsed = NOWHERE.parse::<Program>(line.split_whitespace().map(Into::into));
    match parsed {
        Ok(Program {
            command: Do::Run(run),
            log,
        }) => Ok((run, log)),
        Ok(other) => panic!("{other:?}"),
        Err(fault) => {
            let place = format!("{}:", path.display());
            Err(fault.to_string().replace(&place, ""))
        }
    }
}

#[test]
fn every_kind_of_value_is_taken() {
    let text = r#"
        log = "debug"
        quota = "8KiB"
        rules = ["a", "b c"]
        cert = "c"
        key = "-k"
        json = true
        pin = true
        colour = "green"
    "#;
    let (run, log) = with(text, "").unwrap();
    assert_eq!(log, "debug");
    assert_eq!(run.quota, 8192);
    assert_eq!(run.rules, [PathBuf::from("a"), "b c".into()]);
    assert_eq!(run.key, Some("-k".into()));
    assert!(run.json);
    assert_eq!(run.pin, Some("/pins".into()));
    assert_eq!(run.colour, Colour::Green);
    let (run, _) = with("rules = 'r'\nquota = 7\njson = false\npin = '/p'", "").unwrap();
    assert_eq!((run.quota, run.json), (7, false));
    assert_eq!(run.pin, Some("/p".into()));
}

#[test]
fn flags_go_before_the_environment_and_that_before_the_file() {
    let text = "log = 'a'\nquota = 1\nrules = ['file', 'file']\nroot = '/file'\njson = false";
    let (run, log) = with(text, "--quota 2 --rules flag --log b --json").unwrap();
    assert_eq!((run.quota, &*log, run.json), (2, "b", true));
    assert_eq!(run.rules, [PathBuf::from("flag")]);
    assert_eq!(run.root, PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    let (run, _) = with(text, "--place /flag").unwrap();
    assert_eq!(run.root, PathBuf::from("/flag"));
    // A flag before the command is one, too.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    fs::write(&path, text).unwrap();
    let config = path.to_str().unwrap();
    let words = ["p", "--log", "c", "run", "--config", config].map(Into::into);
    assert_eq!(NOWHERE.parse::<Program>(words).unwrap().log, "c");
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let far = "unknown key `zzzzzzzz`; `config show` lists all";
    for (text, expected) in [
        (
            "rules = 'r'\nquotta = 1",
            "2:1: unknown key `quotta`; did you mean `quota`?",
        ),
        (
            "Quota = 1",
            "1:1: unknown key `Quota`; did you mean `quota`?",
        ),
        ("config = 'x'", "1:1: unknown key `config`;"),
        ("zzzzzzzz = 1", &format!("1:1: {far}")),
        ("\n  quota = '1MB'", "2:11: quota: use a number with KiB"),
        (
            "quota = 1.5",
            "1:9: quota: expected a string or a whole number, found a number with a point",
        ),
        ("quota = -1", "1:9: quota: use a number with KiB"),
        (
            "rules = ['a', 5]",
            "1:15: rules: expected a string, found a whole number",
        ),
        (
            "json = 'yes'",
            "1:8: json: expected true or false, found a string",
        ),
        (
            "cert = true",
            "1:8: cert: expected a string, found true or false",
        ),
        ("colour = 'blue'", "1:10: colour: use one of: red, green"),
        ("quota = 1\nquota = 2", "2:1: "),
        ("quota = ", "1:9: "),
        ("[quota]\na = 1", "1:1: quota: this is a table"),
        ("[run]\nquota = 1", "1:2: unknown key `run`"),
    ] {
        let error = with(text, "").unwrap_err();
        assert!(error.starts_with(expected), "{text}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    // Right by themselves, wrong together; on a line, with the file's name.
    let error = with("rules = 'r'\ncert = 'c'", "").unwrap_err();
    assert!(
        error.contains("--key <KEY>") && !error.contains('\n'),
        "{error}"
    );
    let error = with("quota = 1", "").unwrap_err();
    assert!(error.contains("--rules <FILE>"), "{error}");
}

#[test]
fn without_a_file_and_for_other_commands_nothing_is_different() {
    let parse = |line: &str| NOWHERE.parse::<Program>(line.split_whitespace().map(Into::into));
    assert!(matches!(
        parse("p run --rules r"),
        Ok(Program {
            command: Do::Run(_),
            ..
        })
    ));
    assert!(matches!(
        parse("p other f"),
        Ok(Program {
            command: Do::Other { .. },
            ..
        })
    ));
    for (line, kind) in [
        ("p run", clap::error::ErrorKind::MissingRequiredArgument),
        (
            "p run --rules r --quotta 1",
            clap::error::ErrorKind::UnknownArgument,
        ),
        (
            "p run --rules r --quota",
            clap::error::ErrorKind::InvalidValue,
        ),
        ("p run --help", clap::error::ErrorKind::DisplayHelp),
        (
            "p",
            clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
        ),
    ] {
        match parse(line) {
            Err(Fault::CommandLine(error)) => assert_eq!(error.kind(), kind, "{line}"),
            other => panic!("{line}: {other:?}"),
        }
    }
    let missing = parse("p run --config /nonexistent/p.toml").unwrap_err();
    assert!(
        missing
            .to_string()
            .contains("/nonexistent/p.toml: cannot be read"),
        "{missing}"
    );
}

#[test]
fn what_holds_can_be_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    fs::write(&path, "quota = '8KiB'\nrules = ['r', \"q\\\"\"]").unwrap();
    let fine = |_: Program| Ok(());
    let text = NOWHERE.check(Some(&path), fine).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let root = format!("root = {:?} # environment", env!("CARGO_MANIFEST_DIR"));
    for line in [
        "quota = \"8KiB\"",
        "rules = [\"r\", 'q\"']",
        "# json = false",
        "# colour = \"red\"",
        "# log = \"info\"",
        &root,
    ] {
        assert!(lines.contains(&line), "{line}: {text}");
    }
    fs::write(&path, &text).unwrap();
    assert_eq!(NOWHERE.check(Some(&path), fine).unwrap(), text);
    let judged = NOWHERE.check::<Program>(Some(&path), |_| Err("no".to_owned()));
    assert_eq!(
        judged.unwrap_err().to_string(),
        format!("{}: no", path.display())
    );
}

#[test]
fn the_template_has_every_key_and_is_right_without_its_comments() {
    let text = NOWHERE.show::<Program>();
    for name in NOWHERE.names(<Program as clap::CommandFactory>::command()) {
        let line = format!("# {name} = ");
        assert_eq!(text.matches(&line).count(), 1, "{name}: {text}");
    }
    assert!(
        text.contains("# Most bytes\n# quota = \"4KiB\"\n"),
        "{text}"
    );
    let settings: String = text
        .lines()
        .filter_map(|line| line.strip_prefix("# ").filter(|line| line.contains(" = ")))
        .fold(String::new(), |all, line| all + line + "\n");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    fs::write(&path, &settings).unwrap();
    NOWHERE.check::<Program>(Some(&path), |_| Ok(())).unwrap();
}
