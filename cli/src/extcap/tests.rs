use clap::{CommandFactory as _, Parser as _};

use super::*;

fn line(words: &str) -> anyhow::Result<Vec<String>> {
    let all = ["remoradump", "--capture", "--fifo", "/tmp/fifo"].into_iter();
    let args = ExtcapArgs::try_parse_from(all.chain(words.split(' ')))?;
    match run(&args)? {
        Asked::Capture(words) => Ok(words
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_grammar_is_consistent() {
    ExtcapArgs::command().debug_assert();
}

#[test]
fn a_capture_becomes_a_command_line() {
    for (words, expected) in [
        (
            "--extcap-interface remora --target pod/cart",
            "kubectl-remora capture --write=/tmp/fifo -- pod/cart",
        ),
        (
            "--extcap-interface remora --target deploy/cart --namespace shop --look-back 30s \
             --snaplen 96 --segment --fixed --context prod --kubeconfig /k --extcap-capture-filter udp",
            "kubectl-remora capture --filter=udp --look-back=30s --namespace=shop --context=prod \
             --snaplen=96 --segment --fixed --kubeconfig=/k --write=/tmp/fifo -- deploy/cart",
        ),
        (
            "--extcap-interface remora --target -lapp=cart --namespace=",
            "kubectl-remora capture --write=/tmp/fifo --selector=app=cart",
        ),
        (
            "--extcap-interface remora --target pod/cart --container sidecar",
            "kubectl-remora capture --container=sidecar --write=/tmp/fifo -- pod/cart",
        ),
        (
            "--extcap-interface remoranode --target unit:nginx.service --agent unix:/a.sock",
            "remora capture --agent=unix:/a.sock --write=/tmp/fifo -- unit:nginx.service",
        ),
    ] {
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(line(&words).unwrap().join(" "), expected, "{words}");
    }
}

#[test]
fn the_command_lines_are_ones() {
    let node = line("--extcap-interface remoranode --target pid:1 --snaplen 0").unwrap();
    crate::args::Args::try_parse_from(node).unwrap();
    #[cfg(feature = "kubernetes")]
    {
        let words = "--extcap-interface remora --target -lapp=cart --fixed --segment";
        crate::kube::KubeArgs::try_parse_from(line(words).unwrap()).unwrap();
    }
}

#[test]
fn an_option_in_a_target_stays_a_target() {
    let words = line("--extcap-interface remora --target=--token=x").unwrap();
    assert_eq!(words[words.len() - 2..], ["--", "--token=x"]);
}

#[test]
fn an_interface_that_is_none_and_a_target_that_is_missing_are_refused() {
    for (words, part) in [
        (
            "--extcap-interface eth0 --target pod/x",
            "is not an interface",
        ),
        ("--extcap-interface remora", "extcap.remora.target"),
        (
            "--extcap-interface remoranode --target=",
            "extcap.remoranode.target",
        ),
    ] {
        let error = line(words).unwrap_err().to_string();
        assert!(error.contains(part), "{words}: {error}");
    }
}
