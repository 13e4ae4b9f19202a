//! Metrics in the two text forms that Prometheus takes.
//!
//! Metrics are written as OpenMetrics 1.0. Who does not ask for that gets the older form (0.0.4), in
//! which a counter's family has the name of its samples:
//!
//! ```text
//! # HELP remora_alerts Alerts that came in.          # HELP remora_alerts_total Alerts that came in.
//! # TYPE remora_alerts counter               ──▶     # TYPE remora_alerts_total counter
//! remora_alerts_total 1                              remora_alerts_total 1
//! # EOF
//! ```

/// An answer to a scrape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposition {
    pub content_type: &'static str,
    pub text: String,
}

/// What answers a request with this `Accept` header, of metrics as OpenMetrics 1.0 text.
#[must_use]
pub fn exposition(open_metrics: String, accept: &str) -> Exposition {
    if accept.contains("application/openmetrics-text") {
        return Exposition {
            content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8",
            text: open_metrics,
        };
    }
    Exposition {
        content_type: "text/plain; version=0.0.4; charset=utf-8",
        text: older(&open_metrics),
    }
}

fn older(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut put = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    // A family's help comes before its type, which says how it is called.
    let mut help = None;
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), Some(says)) => help = Some((name, says)),
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let ending = if kind == "counter" { "_total" } else { "" };
                if let Some((_, says)) = help.take_if(|(of, _)| *of == name) {
                    put(&format!("# HELP {name}{ending} {says}"));
                }
                let kind = if kind == "unknown" { "untyped" } else { kind };
                put(&format!("# TYPE {name}{ending} {kind}"));
            }
            (Some("#"), Some("UNIT" | "EOF"), ..) => {}
            _ => put(line),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: &str = "# HELP a_alerts Alerts that came in.\n# TYPE a_alerts counter\n\
        a_alerts_total{code=\"x y\"} 1\n# HELP a_answer_seconds How long.\n\
        # TYPE a_answer_seconds histogram\n# UNIT a_answer_seconds seconds\n\
        a_answer_seconds_sum 0.5\n# HELP a_rules Rules.\n# TYPE a_rules gauge\na_rules 2\n# EOF\n";

    #[test]
    fn who_asks_for_open_metrics_gets_it_as_it_is() {
        let accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
        assert_eq!(exposition(OPEN.to_owned(), accept).text, OPEN);
    }

    #[test]
    fn in_the_older_form_counters_are_called_as_their_samples() {
        let told = exposition(OPEN.to_owned(), "*/*");
        assert!(told.content_type.starts_with("text/plain; version=0.0.4"));
        let expected = "# HELP a_alerts_total Alerts that came in.\n# TYPE a_alerts_total counter\n\
            a_alerts_total{code=\"x y\"} 1\n# HELP a_answer_seconds How long.\n\
            # TYPE a_answer_seconds histogram\na_answer_seconds_sum 0.5\n\
            # HELP a_rules Rules.\n# TYPE a_rules gauge\na_rules 2\n";
        assert_eq!(told.text, expected);
    }
}
