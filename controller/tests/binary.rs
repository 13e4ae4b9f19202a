//! The built program: what it prints, its exit codes, its end on a signal.

mod support;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
};

use support::{ANY, PATIENCE, alert, request};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_remora-controller"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn output(args: &[&str]) -> Output {
    program().args(args).output().unwrap()
}

/// A running controller; killed when the test fails before its end.
struct Running {
    child: Child,
    log: mpsc::Receiver<String>,
    address: String,
    dir: tempfile::TempDir,
}

impl Running {
    /// `format` is that of the log.
    fn start(format: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rules = dir.path().join("rules.yaml");
        std::fs::write(&rules, ANY).unwrap();
        let agent = format!("unix:{}", dir.path().join("agent.sock").display());
        let mut child = program()
            .args(["run", "--listen", "127.0.0.1:0", "--agent", &agent])
            .args(["--log-format", format, "--rules"])
            .arg(rules)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, log) = mpsc::channel();
        thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        let line = log.recv_timeout(PATIENCE).unwrap();
        assert!(line.contains("taking alerts"), "{line}");
        let start = line
            .find("127.0.0.1:")
            .unwrap_or_else(|| panic!("no address: {line}"));
        let end = line[start..].find([' ', '"']).unwrap_or(line.len() - start);
        let address = line[start..start + end].to_owned();
        Self {
            child,
            log,
            address,
            dir,
        }
    }

    fn post(&self, body: &serde_json::Value) -> String {
        let body = serde_json::to_vec(body).unwrap();
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream
            .write_all(&request(
                "POST",
                "/",
                &["Content-Type: application/json"],
                &body,
            ))
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Reads the log up to a line with `text`.
    fn logs(&self, text: &str) -> String {
        loop {
            let line = self.log.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("no `{text}`: {error}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    fn write_rules(&self, text: &str) {
        // Another file in its place, as editors and ConfigMaps do it.
        let new = self.dir.path().join("new.yaml");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.dir.path().join("rules.yaml")).unwrap();
    }

    fn metric(&self, name: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream
            .write_all(&request("GET", "/metrics", &[], b""))
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name}: {text}"))
            .trim()
            .to_owned()
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits for the end; the rest of the log.
    fn end(&mut self) -> (Option<i32>, String) {
        let rest: Vec<_> = self.log.iter().collect();
        (self.child.wait().unwrap().code(), rest.join("\n"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[test]
fn a_signal_ends_it_in_order_with_exit_code_0() {
    for signal in ["TERM", "INT"] {
        let mut running = Running::start("text");
        assert!(
            running
                .post(&alert("198.51.100.23"))
                .starts_with("HTTP/1.1 503 ")
        );
        running.signal(signal);
        let (code, log) = running.end();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains(&format!("SIG{signal}")), "{log}");
        assert!(log.contains("every alert answered"), "{log}");
    }
}

#[test]
fn nothing_of_an_alert_reaches_the_log_raw() {
    for format in ["text", "json"] {
        let mut running = Running::start(format);
        let mut hostile = alert("198.51.100.23");
        hostile["rule"] = "C2\n\u{1b}[2J\r\u{202e}\u{9b}31m".into();
        running.post(&hostile);
        hostile["time"] = "\u{1b}]0;x\u{7}".into();
        running.post(&hostile);
        running.signal("TERM");
        let (_, log) = running.end();
        assert_eq!(log.matches("alert refused").count(), 2, "{log}");
        assert!(
            !log.contains(['\u{1b}', '\r', '\u{202e}', '\u{9b}', '\u{7}']),
            "{log:?}"
        );
        for line in log.lines().filter(|_| format == "json") {
            serde_json::from_str::<serde_json::Value>(line).expect(line);
        }
    }
}

#[test]
fn changed_rules_are_in_use_and_wrong_ones_leave_those_before() {
    let controller = Running::start("text");
    let nothing = "- rule: other\n  match: {rules: [Other]}\n  actions:\n    - {action: a, actionner: 'remora:capture'}\n";
    let ignored =
        |controller: &Running| controller.post(&alert("198.51.100.23")).contains("ignored");
    assert!(!ignored(&controller));

    // SIGHUP: at once, and it does not end the process.
    controller.write_rules(&nothing.replace("actionner", "actioner"));
    controller.signal("HUP");
    let line = controller.logs("the rule files are wrong");
    assert!(
        line.contains("rules.yaml:4: unknown key `actioner`"),
        "{line}"
    );
    assert!(!ignored(&controller));
    assert_eq!(controller.metric("remora_controller_rules_stale"), "1");
    assert_eq!(
        controller.metric("remora_controller_rules_reloads_total{result=\"refused\"}"),
        "1"
    );

    // By itself, once the file stays as it is.
    controller.write_rules(nothing);
    controller.logs("the rule files were read again");
    assert!(ignored(&controller));
    assert_eq!(controller.metric("remora_controller_rules_stale"), "0");
    assert_eq!(
        controller.metric("remora_controller_rules_reloads_total{result=\"loaded\"}"),
        "1"
    );

    // A file that is gone is wrong.
    std::fs::remove_file(controller.dir.path().join("rules.yaml")).unwrap();
    controller.logs("No such file");
    assert!(ignored(&controller));
    controller.write_rules(&format!("{nothing}{ANY}"));
    controller.logs("the rule files were read again");
    assert!(!ignored(&controller));
    assert_eq!(controller.metric("remora_controller_rules "), "2");
}

#[test]
fn rules_check_says_what_it_found_and_where_it_is_wrong() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/rules/example.yaml");
    let right = output(&["rules", "check", example]);
    assert_eq!(right.status.code(), Some(0));
    assert!(
        String::from_utf8(right.stdout)
            .unwrap()
            .starts_with("ok: 4 rules\n")
    );

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wrong.yaml");
    std::fs::write(&file, ANY.replace("actionner", "actioner")).unwrap();
    let wrong = output(&["rules", "check", example, file.to_str().unwrap()]);
    assert_eq!(wrong.status.code(), Some(1));
    let text = String::from_utf8(wrong.stderr).unwrap();
    assert!(
        text.contains("wrong.yaml:5: unknown key `actioner`; did you mean `actionner`?"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn a_start_that_cannot_be_says_why_on_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let rules = dir.path().join("rules.yaml");
    let rules = rules.to_str().unwrap();
    let missing = output(&["run", "--listen", "127.0.0.1:0", "--rules", rules]);
    assert_eq!(missing.status.code(), Some(1));
    let text = String::from_utf8(missing.stderr).unwrap();
    assert_eq!(
        text.matches("No such file or directory").count(),
        1,
        "{text}"
    );

    std::fs::write(rules, ANY).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let second = output(&["run", "--listen", &listen, "--rules", rules]);
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8(second.stderr).unwrap();
    assert!(
        text.contains(&format!("cannot listen on {listen}")),
        "{text}"
    );
    assert!(text.contains("Address already in use"), "{text}");

    let open = output(&["run", "--listen", "0.0.0.0:0", "--rules", rules]);
    assert_eq!(open.status.code(), Some(2));
    assert!(
        String::from_utf8(open.stderr)
            .unwrap()
            .contains("without authentication")
    );
}
