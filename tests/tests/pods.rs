//! Pods by their names, laid out as kubelet does in the layouts of both cgroup drivers.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use remora_proto::v1::{self, target::Target};
use remora_tests::{
    agent::{Options, TestAgent, looking_back, spec},
    apiserver::{ApiServer, Kind},
    kubelet::{Class, Driver, HostPod, KubePod, uid},
    node::Node,
    numbered::Number,
    packets::{Capture, Packet},
    proof,
    traffic::{self, Stream},
    wait,
};
use serde_json::json;
use tonic::Code;

const LIMIT: Duration = Duration::from_secs(30);
const PACKETS: u64 = 50;

struct Bed<'a> {
    node: &'a Node,
    server: ApiServer,
    agent: TestAgent<'a>,
}

impl<'a> Bed<'a> {
    fn new(node: &'a Node) -> Result<Self> {
        let server = ApiServer::start(node.netns())?;
        server.put(Kind::Namespace, json!({"metadata": {"name": "shop"}}));
        let kubeconfig = server.kubeconfig(node.directory())?;
        let options = Options {
            arguments: vec!["--kubeconfig".into(), kubeconfig.display().to_string()],
            ..Options::default()
        };
        let agent = TestAgent::start_with(node, options)?;
        Ok(Self {
            node,
            server,
            agent,
        })
    }

    /// A pod of the namespace `shop` that runs, and that the agent knows.
    fn pod(
        &self,
        driver: Driver,
        class: Class,
        name: &str,
        containers: &[&str],
    ) -> Result<KubePod> {
        let pod = KubePod::new(self.node, (driver, class), ("shop", name), containers)?;
        self.server.put(Kind::Pod, pod.object());
        self.known(&pod)?;
        Ok(pod)
    }

    /// Waits until the agent has the pod's name for its recorded veth.
    fn known(&self, pod: &KubePod) -> Result<()> {
        let name = format!("pod {}/{}, ", pod.namespace, pod.name);
        let known = wait::until(LIMIT, "the pod's name", || {
            let taps = self.agent.status()?.taps;
            Ok(taps.iter().any(|tap| {
                tap.interface == pod.pod().interface()
                    && tap.look_back.is_some()
                    && tap.description.starts_with(&name)
            }))
        });
        known.with_context(|| format!("{:?}\n{}", self.agent.status(), self.agent.tail()))
    }

    fn refusal(&self, target: Target) -> Result<tonic::Status> {
        let refused = self.agent.capture(spec(target));
        refused.err().context("it started")
    }
}

fn named(name: &str) -> v1::Pod {
    v1::Pod {
        namespace: "shop".into(),
        name: name.into(),
        ..v1::Pod::default()
    }
}

fn of(name: &str) -> Target {
    Target::Pod(named(name))
}

fn of_container(name: &str, container: &str) -> Target {
    Target::Pod(v1::Pod {
        container: container.into(),
        ..named(name)
    })
}

fn runs(packets: &[Packet]) -> Vec<u16> {
    let numbers = packets.iter();
    let numbers = numbers.filter_map(|packet| Number::of_frame(&packet.data));
    let mut runs: Vec<_> = numbers.map(|number| number.run).collect();
    runs.sort_unstable();
    runs
}

fn send(
    to: std::net::Ipv4Addr,
    run: u16,
    place: impl FnOnce(&std::path::Path) -> std::process::Command,
) -> Result<()> {
    let stream = Stream {
        run,
        ..Stream::new(to, 9000, PACKETS)
    };
    stream.send(place)?;
    Ok(())
}

fn finished(bed: &Bed<'_>, state: &v1::CaptureState) -> Result<Capture> {
    let state = bed.agent.stop(&state.id)?;
    Ok(proof::prove(&bed.agent, &state)?.capture)
}

#[test]
fn a_pod_is_captured_by_its_name_in_every_layout() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node)?;
    let api = bed.pod(Driver::Cgroupfs, Class::Guaranteed, "api", &["api"])?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command("api", tool))?;
    let mut run = 0;
    for driver in [Driver::Cgroupfs, Driver::Systemd] {
        for class in [Class::Guaranteed, Class::Burstable, Class::BestEffort] {
            run += 1;
            let name = format!("web{run}");
            let web = bed.pod(driver, class, &name, &["main", "side"])?;
            let state = bed.agent.capture(v1::CaptureSpec {
                filter: "udp port 9000".into(),
                ..spec(of(&name))
            })?;
            send(api.pod().ipv4(), run, |tool| web.command("main", tool))?;
            send(api.pod().ipv4(), run, |tool| web.command("side", tool))?;
            let capture = finished(&bed, &state)?;
            assert_eq!(runs(&capture.packets), vec![run; 2 * PACKETS as usize]);

            let interface = &capture.interfaces[0];
            assert_eq!(interface.name, format!("shop/{name}/veth-{name}"));
            for told in [
                "host end of the pod's veth",
                "node node-a",
                "main=example/main:1,side=example/side:1",
                &format!("labels app={name}"),
            ] {
                assert!(interface.description.contains(told), "{interface:?}");
            }
            assert_eq!(capture.interfaces[1].name, format!("shop/{name}/lo"));
            let own = capture.names.get(&web.pod().ipv4().into());
            assert_eq!(own, Some(&format!("{name}.shop")));
            let told = bed.agent.sidecar(&state.id)?.capture.pod;
            let told = told.context("no pod in the sidecar")?;
            assert_eq!(
                (told.full_name(), &told.uid),
                (format!("shop/{name}"), &web.uid)
            );
            assert_eq!(told.containers.len(), 2);
            assert_eq!(told.containers[0].id, web.container_id("main"));
            assert!(told.containers[0].image_id.contains("@sha256:"));
            let manifest = bed.agent.manifest(&state.id)?;
            assert_eq!(manifest.pod.context("no pod in the manifest")?, told);
        }
    }
    let metrics = bed.agent.metrics()?;
    ensure!(
        metrics.contains("remora_pod_address_checks_total{result=\"differed\"} 0\n"),
        "{metrics}"
    );
    ensure!(
        !metrics.contains("remora_pod_address_checks_total{result=\"agreed\"} 0\n"),
        "{metrics}"
    );
    Ok(())
}

#[test]
fn one_container_is_told_from_the_others_by_its_sockets() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node)?;
    let api = bed.pod(Driver::Cgroupfs, Class::Guaranteed, "api", &["api"])?;
    let mut web = bed.pod(Driver::Systemd, Class::BestEffort, "web", &["main", "side"])?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command("api", tool))?;
    let state = bed.agent.capture(spec(of_container("web", "side")))?;
    for (run, container) in [(1, "main"), (2, "side")] {
        send(api.pod().ipv4(), run, |tool| web.command(container, tool))?;
    }
    let capture = finished(&bed, &state)?;
    assert_eq!(runs(&capture.packets), vec![2; PACKETS as usize]);
    assert_eq!(capture.interfaces[0].name, "shop/web/side");
    assert!(!capture.interfaces[0].description.contains("example/main"));

    // A restart is another cgroup: a running capture ends, and says what it was of.
    let state = bed.agent.capture(spec(of_container("web", "side")))?;
    web.run("side")?;
    let ended = bed.agent.wait_final(&state.id, LIMIT)?;
    assert_eq!(ended.stop_reason(), v1::StopReason::TargetGone);
    assert!(ended.message.contains("container `side`"), "{ended:?}");
    let error = bed.refusal(of_container("web", "side"))?;
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().contains("after each restart"), "{error}");
    bed.server.put(Kind::Pod, web.object());
    let again = wait::until_some(LIMIT, "the new container", || {
        Ok(bed.agent.capture(spec(of_container("web", "side"))).ok())
    })?;
    send(api.pod().ipv4(), 3, |tool| web.command("side", tool))?;
    assert_eq!(
        runs(&finished(&bed, &again)?.packets),
        vec![3; PACKETS as usize]
    );
    Ok(())
}

#[test]
fn a_pod_of_the_node_s_network_and_from_a_manifest_is_its_cgroup() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node)?;
    let api = bed.pod(Driver::Cgroupfs, Class::Guaranteed, "api", &["api"])?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command("api", tool))?;
    let hash = uid().replace('-', "");
    let proxy = HostPod::new(&node, Driver::Cgroupfs, &hash)?;
    let object = |name: &str, hash: &str| {
        json!({
            "metadata": {
                "namespace": "shop", "name": name, "uid": uid(),
                "annotations": {
                    "kubernetes.io/config.mirror": hash, "kubernetes.io/config.hash": hash,
                },
            },
            "spec": {"nodeName": "node-a", "hostNetwork": true, "containers": []},
            "status": {"phase": "Running", "podIP": node.address().to_string()},
        })
    };
    bed.server.put(Kind::Pod, object("proxy", &hash));
    let state = wait::until_some(LIMIT, "the pod by its manifest's hash", || {
        Ok(bed.agent.capture(spec(of("proxy"))).ok())
    })?;
    send(api.pod().ipv4(), 1, |tool| proxy.command(&node, tool))?;
    send(api.pod().ipv4(), 2, |tool| node.command(tool))?;
    let capture = finished(&bed, &state)?;
    assert_eq!(runs(&capture.packets), vec![1; PACKETS as usize]);
    assert_eq!(capture.interfaces[0].name, "shop/proxy/cgroup");
    // The node's address is everybody's.
    assert_eq!(capture.names.get(&node.address()), None);

    // Whoever may make pods may annotate them: then it is nobody's cgroup, and no other pod's ever.
    bed.server.put(Kind::Pod, object("claims", &hash));
    wait::until(LIMIT, "a refusal", || {
        let error = bed.agent.capture(spec(of("claims"))).err();
        Ok(error.is_some_and(|error| error.message().contains("more than one pod claims")))
    })?;
    bed.server.put(Kind::Pod, object("thief", &api.uid));
    wait::until(LIMIT, "a refusal", || {
        let error = bed.agent.capture(spec(of("thief"))).err();
        Ok(error.is_some_and(|error| error.message().contains("no cgroup of pod")))
    })?;
    Ok(())
}

#[test]
fn a_deleted_pod_s_last_packets_are_found_by_name_uid_and_container() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node)?;
    let api = bed.pod(Driver::Cgroupfs, Class::Guaranteed, "api", &["api"])?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command("api", tool))?;
    let back = |target: Target| {
        let spec = v1::CaptureSpec {
            filter: "udp port 9000".into(),
            ..spec(target)
        };
        looking_back(spec, 60)
    };
    let past = |target: Target| -> Result<Capture> {
        let state = bed.agent.capture(back(target))?;
        let state = bed.agent.wait_final(&state.id, LIMIT)?;
        Ok(proof::prove(&bed.agent, &state)?.capture)
    };
    let mut uids = Vec::new();
    for run in 1..=2 {
        let web = bed.pod(Driver::Systemd, Class::Burstable, "web", &["main"])?;
        send(api.pod().ipv4(), run, |tool| web.command("main", tool))?;
        // While it is there, its name is its own.
        let state = bed.agent.capture(back(of("web")))?;
        assert_eq!(
            runs(&finished(&bed, &state)?.packets),
            vec![run; PACKETS as usize]
        );
        uids.push(web.uid.clone());
        let interface = web.pod().interface().to_owned();
        let sandbox = web.pod().container_id().to_owned();
        bed.server.delete(Kind::Pod, "shop", "web");
        drop(web);
        wait::until(LIMIT, "the end of the veth", || {
            let taps = bed.agent.status()?.taps;
            Ok(!taps.iter().any(|tap| tap.interface == interface))
        })?;
        for target in [of("web"), Target::ContainerId(sandbox)] {
            let capture = past(target)?;
            assert_eq!(runs(&capture.packets), vec![run; PACKETS as usize]);
            assert!(
                capture.interfaces[0].name.starts_with("shop/web/"),
                "{capture:?}"
            );
        }
    }
    for (run, uid) in (1..).zip(uids) {
        let pod = v1::Pod {
            uid,
            ..named("web")
        };
        let capture = past(Target::Pod(pod))?;
        assert_eq!(runs(&capture.packets), vec![run; PACKETS as usize]);
    }
    // Of the one that was there last, without look-back: told, not captured.
    let error = bed.refusal(of("web"))?;
    assert!(error.message().contains("--look-back 30s"), "{error}");
    Ok(())
}

#[test]
fn a_capture_waits_for_a_pod_that_is_being_started() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node)?;
    let api = bed.pod(Driver::Cgroupfs, Class::Guaranteed, "api", &["api"])?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command("api", tool))?;
    let uid = uid();
    let pending = json!({
        "metadata": {"namespace": "shop", "name": "web", "uid": uid},
        "spec": {"nodeName": "node-a", "containers": [{"name": "main"}]},
        "status": {"phase": "Pending"},
    });
    bed.server.put(Kind::Pod, pending);
    wait::until(LIMIT, "the pod without a cgroup", || {
        let error = bed.refusal(of("web"))?;
        Ok(error.message().contains("has not started it yet"))
    })?;
    // The API server has told of it; then its cgroup comes, its process, its veth.
    let (state, web) = std::thread::scope(|scope| -> Result<_> {
        let capture = scope.spawn(|| {
            wait::until_some(LIMIT, "a capture of the pod", || {
                Ok(bed.agent.capture(spec(of("web"))).ok())
            })
        });
        let layout = (Driver::Systemd, Class::BestEffort);
        let web = KubePod::with_uid(&node, layout, ("shop", "web"), &uid, &["main"])?;
        let state = capture
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((state, web))
    })?;
    send(api.pod().ipv4(), 1, |tool| web.command("main", tool))?;
    let capture = finished(&bed, &state)?;
    assert_eq!(runs(&capture.packets), vec![1; PACKETS as usize]);
    assert_eq!(capture.interfaces[0].name, "shop/web/veth-web");
    Ok(())
}

#[test]
fn what_no_name_means_is_said() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node)?;
    let web = bed.pod(Driver::Cgroupfs, Class::BestEffort, "web", &["main"])?;
    let with_uid = |name: &str, uid: &str| {
        Target::Pod(v1::Pod {
            uid: uid.into(),
            ..named(name)
        })
    };
    for (target, code, told) in [
        (of("webb"), Code::NotFound, "kubectl get pods -o wide"),
        (of_container("web", "mian"), Code::NotFound, "it has main"),
        (
            with_uid("webb", &web.uid),
            Code::NotFound,
            "the uid of shop/web",
        ),
        (with_uid("web", &uid()), Code::NotFound, "on another node"),
        (with_uid("web", "../x"), Code::InvalidArgument, "uid"),
        (of("we/b"), Code::InvalidArgument, "name"),
    ] {
        let error = bed.refusal(target.clone())?;
        assert_eq!(error.code(), code, "{target:?}: {error}");
        assert!(error.message().contains(told), "{target:?}: {error}");
    }
    // By its uid alone a pod is found without its name ever being told, if nothing else is asked for.
    let unknown = KubePod::new(
        &node,
        (Driver::Systemd, Class::BestEffort),
        ("shop", "new"),
        &["main"],
    )?;
    let error = bed.refusal(of("new"))?;
    assert_eq!(error.code(), Code::NotFound);
    let state = bed.agent.capture(spec(with_uid("new", &unknown.uid)))?;
    // Its name is filled in when it is told.
    bed.server.put(Kind::Pod, unknown.object());
    bed.known(&unknown)?;
    bed.agent.stop(&state.id)?;
    let told = bed.agent.sidecar(&state.id)?.capture.pod;
    assert_eq!(
        told.context("no pod in the sidecar")?.full_name(),
        "shop/new"
    );
    Ok(())
}
