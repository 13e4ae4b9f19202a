use std::{num::NonZeroU64, time::Duration};

use clap::{CommandFactory as _, Parser as _};
use remora_capture::session::{Direction, SuperPackets};

use super::*;
use crate::kube::{KubeArgs, args::Command};

fn parse(line: &str) -> Result<KubeArgs, clap::Error> {
    KubeArgs::try_parse_from(
        ["kubectl-remora"]
            .into_iter()
            .chain(line.split_whitespace()),
    )
}

/// What the line captures in namespace `shop`, unless it names another.
fn wish(line: &str) -> anyhow::Result<Wish> {
    let args = parse(line)?;
    let namespace = args.access.namespace.unwrap_or_else(|| "shop".into());
    match args.command {
        Command::Capture(args) => Wish::of(&args, &namespace, "alice"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_grammar_is_consistent() {
    KubeArgs::command().debug_assert();
}

#[test]
fn targets_and_filters_are_told_apart() {
    for (line, target, namespace, filter) in [
        ("capture pod/cart-7d9 -w f", "pod/cart-7d9", "shop", ""),
        ("capture cart-7d9 -w f", "pod/cart-7d9", "shop", ""),
        (
            "capture po/cart -w f tcp port 443",
            "pod/cart",
            "shop",
            "tcp port 443",
        ),
        ("capture pods/cart -w f", "pod/cart", "shop", ""),
        ("capture pod/cart -n other -w f", "pod/cart", "other", ""),
        (
            "capture pod/cart --namespace=other -w f",
            "pod/cart",
            "other",
            "",
        ),
        ("-n other capture pod/cart -w f", "pod/cart", "other", ""),
        (
            "capture pod/cart -c sidecar -w f",
            "pod/cart -c sidecar",
            "shop",
            "",
        ),
        (
            "capture pod/cart --container sidecar -w f udp",
            "pod/cart -c sidecar",
            "shop",
            "udp",
        ),
        ("capture deploy/cart -w f", "deploy/cart", "shop", ""),
        ("capture deployment/cart -w f", "deploy/cart", "shop", ""),
        ("capture deployments/cart -w f", "deploy/cart", "shop", ""),
        ("capture sts/db -w f", "sts/db", "shop", ""),
        ("capture statefulset/db -w f", "sts/db", "shop", ""),
        ("capture ds/dns -w f", "ds/dns", "shop", ""),
        ("capture daemonsets/dns -w f", "ds/dns", "shop", ""),
        ("capture job/once -w f", "job/once", "shop", ""),
        ("capture rs/cart-7d9 -w f", "rs/cart-7d9", "shop", ""),
        ("capture svc/cart -w f", "svc/cart", "shop", ""),
        ("capture service/cart -w f", "svc/cart", "shop", ""),
        ("capture -l app=cart -w f", "-l app=cart", "shop", ""),
        (
            "capture -l app=cart,tier!=db -w f tcp",
            "-l app=cart,tier!=db",
            "shop",
            "tcp",
        ),
        (
            "capture --selector=app=cart -w f",
            "-l app=cart",
            "shop",
            "",
        ),
        ("capture node/worker-1 -w f", "node/worker-1", "", ""),
        (
            "capture no/worker-1.example -w f arp",
            "node/worker-1.example",
            "",
            "arp",
        ),
        (
            "capture -w f -- pod/cart not port 22",
            "pod/cart",
            "shop",
            "not port 22",
        ),
        ("capture -w f -f udp pod/cart", "pod/cart", "shop", "udp"),
        (
            "capture pod/cart -w - host 192.0.2.1",
            "pod/cart",
            "shop",
            "host 192.0.2.1",
        ),
        (
            "capture pod/cart -w f net 10.0.0.0/8",
            "pod/cart",
            "shop",
            "net 10.0.0.0/8",
        ),
    ] {
        let wish = wish(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(wish.selector.to_string(), target, "{line}");
        assert_eq!(
            wish.selector.namespace().unwrap_or_default(),
            namespace,
            "{line}"
        );
        assert_eq!(wish.spec.filter.text(), filter, "{line}");
    }
}

#[test]
fn what_remora_capture_takes_reaches_the_spec() {
    let wish = wish(
        "capture deploy/cart --look-back 30s -a duration:60 -s 96 --count 100 --segment --fixed -Q in \
         --label case=42 --name 10.0.0.1=web --reason odd -w f",
    )
    .unwrap();
    assert!(wish.fixed);
    let spec = &wish.spec;
    assert_eq!(spec.look_back, Duration::from_secs(30));
    assert_eq!(spec.limits.duration, Some(Duration::from_secs(60)));
    assert_eq!(spec.limits.packets, NonZeroU64::new(100));
    assert_eq!(spec.snaplen.get(), 96);
    assert_eq!(spec.super_packets, SuperPackets::Segmented);
    assert_eq!(spec.direction, Direction::Ingress);
    assert_eq!(spec.destination, Destination::Stream);
    assert_eq!(spec.labels["case"], "42");
    assert_eq!(spec.names[0].name, "web");
    assert_eq!(spec.trigger.reason, "odd");
    assert_eq!(spec.trigger.requester, "alice");

    let request = wish.request("key".into(), Timestamp::UNIX_EPOCH);
    let spec = request.spec.unwrap();
    assert!(
        spec.target.is_none() && spec.part.is_none(),
        "they are the controller's"
    );
    assert_eq!(spec.trigger.unwrap().time.unwrap().seconds, 0);
    assert!(request.fixed);
    assert_eq!(request.idempotency_key, "key");
    assert_eq!(request.selector.unwrap().namespace, "shop");
}

#[test]
fn what_is_stored_is_written_by_the_agents_unless_there_is_a_file_too() {
    let stored = wish("capture pod/cart --store --compress -C 1").unwrap();
    assert_eq!(stored.spec.destination, Destination::Store);
    assert!(stored.spec.writing.rotation.is_on());
    let both = wish("capture pod/cart --store -w f.pcapng.zst -C 1 -G 10 -W 2").unwrap();
    assert_eq!(both.spec.destination, Destination::Store);
    assert!(!both.spec.writing.rotation.is_on(), "the file is ours");
}

#[test]
fn what_is_refused_says_what_to_do() {
    for (line, part) in [
        ("capture -w f", "no target"),
        ("capture tcp port 80 -w f", "no target before the filter"),
        ("capture port 80 -w f", "no target before the filter"),
        ("capture pod/cart", "use -w FILE"),
        ("capture pod/ -w f", "is not the name"),
        ("capture pod/Cart -w f", "is not the name"),
        ("capture pod/a/b -w f", "is not the name"),
        ("capture cron/x -w f", "use pod/NAME"),
        (
            "capture deploy/cart -c sidecar -w f",
            "use it with pod/NAME, not with deploy/cart",
        ),
        (
            "capture -l app=cart -c sidecar -w f",
            "use it with pod/NAME",
        ),
        ("capture -l app=cart pod/cart -w f", "use one"),
        ("capture pod/cart -c 100 -w f", "use --count 100"),
        ("capture pod/cart -c Side -w f", "is not the container"),
        ("capture pod/cart -n Shop -w f", "is not the namespace"),
        ("capture pod/cart -n ../x -w f", "is not the namespace"),
        ("capture pod/cart -f tcp -w f udp", "give it once"),
        (
            "capture pod/cart -w f tcp prot 80",
            "syntax error at `prot`",
        ),
        ("capture pod/cart -s 300000 -w f", "use 1 to 262144"),
        ("capture pod/cart -a duration:0 -w f", "at most 7 days"),
        ("capture pod/cart -a files:3 -w f", "packets:N"),
        ("capture pod/cart --count 0 -w f", "--count"),
        ("capture pod/cart --look-back soon -w f", "--look-back"),
        ("capture pod/cart --compress -w f", "--compress"),
        ("capture pod/cart --wait -w f", "--wait"),
        ("capture pod/cart --store --compress -w f", "--compress"),
        ("capture pod/cart -i eth0 -w f", "-i"),
        ("capture pod/cart -C 1 --store -W 0", "--files"),
        ("capture pod/cart --segment -a filesize:10 -w f", "segments"),
        (
            "capture pod/cart --request-timeout soon -w f",
            "--request-timeout",
        ),
        (
            "capture pod/cart --controller remora:2805 -w f",
            "use https://HOST:PORT",
        ),
    ] {
        let error = format!("{:#}", wish(line).expect_err(line));
        assert!(error.contains(part), "{line}: {error}");
    }
}

#[test]
fn commands_are_what_they_seem() {
    let id = "01J9ZQ3C7M8N4R5T6V7W8X9YZA";
    for line in [
        "list",
        "list -a -o json",
        "list -A",
        "list --all-namespaces --all",
        "status",
        "status -o json --context prod",
        "doctor --kubeconfig /x",
        &format!("show {id}"),
        &format!("show {id} -o json -n other"),
        &format!("get {id} -w f"),
        &format!("get {id} -w - --token t"),
        &format!("stop {id}"),
        &format!("stop {id} {id}"),
        "completions bash",
        "--as bob --as-group a --as-group b --as-uid 1 status",
        "status --server https://1.2.3.4 --certificate-authority /ca --tls-server-name x",
        "status --insecure-skip-tls-verify",
        "status --insecure-skip-tls-verify=false",
        "status --client-certificate /c --client-key /k --user u --cluster c",
        "status --cache-dir /x -v 6 --v=6 --warnings-as-errors --match-server-version=true",
        "status --request-timeout 0 --remora-namespace r --remora-ca /ca",
        "status --controller unix:/c.sock",
    ] {
        // `-v 6 --v=6` is one option twice, as kubectl takes it.
        let line = line.replace("-v 6 --v=6", "-v 6");
        parse(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    for (line, part) in [
        ("", "Usage"),
        ("lst", "list"),
        ("list -A -n shop", "--all-namespaces"),
        ("list -o yaml", "json"),
        ("show", "<ID>"),
        ("show x", "is not a capture id"),
        ("get 01J9ZQ3C7M8N4R5T6V7W8X9YZA", "--write"),
        ("stop", "<ID>"),
        ("stop ../x", "is not a capture id"),
        ("completions tcsh", "bash"),
        ("status --insecure-skip-tls-verify=perhaps", "perhaps"),
        ("status --nonsense", "--nonsense"),
    ] {
        let error = parse(line).expect_err(line).to_string();
        assert!(error.contains(part), "{line}: {error}");
    }
}

#[test]
fn times_are_kubectls() {
    for (line, expected) in [
        ("status --request-timeout 0", Some(None)),
        (
            "status --request-timeout 30s",
            Some(Some(Duration::from_secs(30))),
        ),
        (
            "status --request-timeout=2m",
            Some(Some(Duration::from_secs(120))),
        ),
        ("status", None),
    ] {
        let timeout = parse(line).unwrap().access.request_timeout;
        assert_eq!(timeout.map(|timeout| timeout.0), expected, "{line}");
    }
}

#[test]
fn a_dump_needs_no_target_beside_a_filter() {
    let dumped = |line: &str| match parse(line).unwrap().command {
        Command::Capture(args) => dump(&args, "shop"),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        dumped("capture -d -f ip").unwrap(),
        dumped("capture -d pod/cart ip").unwrap()
    );
    assert!(dumped("capture -d").is_err());
}
