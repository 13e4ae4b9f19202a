use std::{ffi::OsString, fs};

use super::*;

const A: &str = "
apiVersion: v1
kind: Config
current-context: ''
clusters:
- {name: c, cluster: {server: 'https://a:6443', certificate-authority: ca.pem}}
users:
- {name: u, user: {token: of-a}}
";

const B: &str = "
apiVersion: v1
kind: Config
current-context: b
clusters:
- {name: c, cluster: {server: 'https://b:6443'}}
- {name: d, cluster: {server: 'https://d:6443', insecure-skip-tls-verify: true}}
users:
- {name: u, user: {token: of-b}}
- {name: cert, user: {client-certificate: /cert.pem, client-key: /key.pem}}
- {name: other, user: {as: root, token: t}}
contexts:
- {name: b, context: {cluster: c, user: u, namespace: shop}}
- {name: d, context: {cluster: d, user: cert}}
- {name: lost, context: {cluster: nowhere, user: u}}
- {name: as, context: {cluster: c, user: other}}
";

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), A).unwrap();
        fs::write(dir.path().join("b"), B).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `KUBECONFIG=a:gone:b`.
    fn merged(&self) -> Kubeconfig {
        let paths = ["a", "gone", "b"].map(|name| self.path(name));
        let files = Files::Usual(paths.to_vec());
        files.read().unwrap().unwrap()
    }
}

fn token(choice: &Choice) -> Option<String> {
    let token = choice.user.token.clone()?;
    let json = serde_json::to_value(AuthInfo {
        token: Some(token),
        ..AuthInfo::default()
    });
    json.unwrap()["token"].as_str().map(str::to_owned)
}

#[test]
fn files_are_looked_for_where_kubectl_looks() {
    let home = Path::new("/home/a");
    let listed = OsString::from("/x:/y::");
    assert_eq!(
        Files::of(Some(Path::new("/f")), Some(&listed), Some(home)),
        Files::Named("/f".into())
    );
    assert_eq!(
        Files::of(None, Some(&listed), Some(home)),
        Files::Usual(vec!["/x".into(), "/y".into()])
    );
    let usual = Files::Usual(vec!["/home/a/.kube/config".into()]);
    assert_eq!(Files::of(None, None, Some(home)), usual);
    assert_eq!(
        Files::of(None, Some(&OsString::from("")), Some(home)),
        usual
    );
    assert_eq!(Files::of(None, None, None), Files::Usual(vec![]));
}

#[test]
fn the_first_file_that_says_a_thing_wins() {
    let dir = Dir::new();
    let merged = dir.merged();
    assert_eq!(
        merged.current_context.as_deref(),
        Some("b"),
        "an empty one says nothing"
    );
    let choice = Choice::of(&merged, &AccessArgs::default()).unwrap();
    assert_eq!(choice.cluster.server.as_deref(), Some("https://a:6443"));
    assert_eq!(token(&choice).as_deref(), Some("of-a"));
    assert_eq!(choice.namespace(), "shop");
    // A relative path is from its own file.
    let authority = choice.cluster.certificate_authority.unwrap();
    assert_eq!(Path::new(&authority), dir.path("ca.pem"));
}

#[test]
fn files_that_are_missing_are_passed_over_unless_they_were_named() {
    let dir = Dir::new();
    assert!(
        Files::Usual(vec![dir.path("gone")])
            .read()
            .unwrap()
            .is_none()
    );
    let error = Files::Named(dir.path("gone"))
        .read()
        .unwrap_err()
        .to_string();
    assert!(error.contains("gone cannot be read"), "{error}");
    fs::write(dir.path("broken"), "clusters: {").unwrap();
    let error = Files::Usual(vec![dir.path("a"), dir.path("broken")]).read();
    let error = error.unwrap_err().to_string();
    assert!(error.contains("broken cannot be read"), "{error}");
}

#[test]
fn flags_choose() {
    let dir = Dir::new();
    let merged = dir.merged();
    let with = |change: &dyn Fn(&mut AccessArgs)| {
        let mut args = AccessArgs::default();
        change(&mut args);
        Choice::of(&merged, &args)
    };
    let choice = with(&|args| args.context = Some("d".into())).unwrap();
    assert_eq!(choice.cluster.insecure_skip_tls_verify, Some(true));
    assert_eq!(choice.user.client_key.as_deref(), Some("/key.pem"));
    assert_eq!(choice.namespace(), "default");

    let choice = with(&|args| args.cluster = Some("d".into())).unwrap();
    assert_eq!(choice.cluster.server.as_deref(), Some("https://d:6443"));
    assert_eq!(
        token(&choice).as_deref(),
        Some("of-a"),
        "the context's user stays"
    );

    let choice = with(&|args| args.user = Some("cert".into())).unwrap();
    assert!(choice.user.client_certificate.is_some() && choice.user.token.is_none());

    let choice = with(&|args| {
        args.server = Some("https://z".into());
        args.insecure_skip_tls_verify = Some(true);
        args.tls_server_name = Some("n".into());
        args.certificate_authority = Some("/z.pem".into());
    });
    let cluster = choice.unwrap().cluster;
    assert_eq!(cluster.server.as_deref(), Some("https://z"));
    assert_eq!(cluster.insecure_skip_tls_verify, Some(true));
    assert_eq!(cluster.tls_server_name.as_deref(), Some("n"));
    assert_eq!(cluster.certificate_authority.as_deref(), Some("/z.pem"));
}

#[test]
fn a_token_stands_beside_a_certificate_and_for_everything_else() {
    let dir = Dir::new();
    let merged = dir.merged();
    let choice = |context: &str| {
        let args = AccessArgs {
            context: Some(context.into()),
            token: Some("mine".into()),
            ..AccessArgs::default()
        };
        Choice::of(&merged, &args).unwrap()
    };
    let certified = choice("d");
    assert_eq!(token(&certified).as_deref(), Some("mine"));
    assert!(certified.user.client_certificate.is_some());
    // It is somebody's own: nobody is acted as.
    assert!(choice("as").user.impersonate.is_none());
}

#[test]
fn what_is_not_there_is_told_with_what_is() {
    let dir = Dir::new();
    let merged = dir.merged();
    let error = |change: &dyn Fn(&mut AccessArgs)| {
        let mut args = AccessArgs::default();
        change(&mut args);
        Choice::of(&merged, &args).unwrap_err().to_string()
    };
    for (error, parts) in [
        (
            error(&|args| args.context = Some("x".into())),
            ["no context `x`", "b, d, lost"],
        ),
        (
            error(&|args| args.context = Some("lost".into())),
            ["no cluster `nowhere`", "c, d"],
        ),
        (
            error(&|args| args.cluster = Some("x".into())),
            ["no cluster `x`", "c, d"],
        ),
        (
            error(&|args| args.user = Some("x".into())),
            ["no user `x`", "u, cert"],
        ),
        (
            error(&|args| args.act_as = Some("bob".into())),
            ["--as", "kubectl create token"],
        ),
        (
            error(&|args| args.as_group = vec!["g".into()]),
            ["--as", "kubectl create token"],
        ),
        (
            error(&|args| args.context = Some("as".into())),
            ["--as", "kubectl create token"],
        ),
    ] {
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
    let error = Choice::of(&Kubeconfig::default(), &AccessArgs::default()).unwrap_err();
    assert!(
        error.to_string().contains("no context is chosen"),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_and_a_token_are_enough() {
    let args = AccessArgs {
        server: Some("https://z:6443".into()),
        token: Some("mine".into()),
        ..AccessArgs::default()
    };
    let choice = Choice::of(&Kubeconfig::default(), &args).unwrap();
    let config = choice.config().await.unwrap();
    assert_eq!(config.cluster_url.to_string(), "https://z:6443/");
    assert_eq!(config.default_namespace, "default");
    assert_eq!(token(&choice).as_deref(), Some("mine"));
}

#[tokio::test]
async fn an_address_that_is_none_is_told() {
    let args = AccessArgs {
        server: Some("https://[".into()),
        ..AccessArgs::default()
    };
    let choice = Choice::of(&Kubeconfig::default(), &args).unwrap();
    let error = format!("{:#}", choice.config().await.unwrap_err());
    assert!(error.contains("the kubeconfig cannot be used"), "{error}");
}
