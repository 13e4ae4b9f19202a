//! Accounts, their rights, and what each caller shows.

use std::collections::BTreeMap;

use anyhow::Result;

use remora_tests::cluster::{
    Cluster,
    access::{ADMIN, PEOPLE},
    account_token::{Claims, ISSUER},
};

use crate::shop::Shop;

/// In seconds.
const HOUR: i64 = 3600;

/// Accounts of the namespace `own`, and roles.
pub(super) fn grant(shops: &BTreeMap<&'static str, Shop<'_>>) -> Result<()> {
    let (own, other, free) = (&shops["own"], &shops["other"], &shops["free"]);
    let accounts = [
        "viewer",
        "creator",
        "reader",
        "capturer",
        "custodian",
        "operator",
        "plain",
        "former",
    ];
    for account in accounts {
        own.run(&["create", "serviceaccount", account])?;
    }
    let account = |name: &str| format!("--serviceaccount={}:{name}", own.namespace);
    for (name, verbs, resource) in [
        ("creator", "create", "captures.remora.dev"),
        ("reader", "get", "captures.remora.dev/data"),
    ] {
        let (verbs, resource) = (format!("--verb={verbs}"), format!("--resource={resource}"));
        own.run(&["create", "role", name, &verbs, &resource])?;
        let role = format!("--role={name}");
        own.run(&["create", "rolebinding", name, &role, &account(name)])?;
    }
    let bind = |shop: &Shop<'_>, name: &str, role: &str, subject: &str| {
        let role = format!("--clusterrole={role}");
        shop.run(&["create", "rolebinding", name, &role, subject])
    };
    bind(own, "viewer", "remora-viewer", &account("viewer"))?;
    bind(own, "capturer", "remora-capturer", &account("capturer"))?;
    bind(own, "custodian", "remora-custodian", &account("custodian"))?;
    bind(own, "former", "remora-capturer", &account("former"))?;
    bind(other, "bob", "remora-capturer", "--user=bob")?;
    let group = format!("--group=system:serviceaccounts:{}", own.namespace);
    bind(free, "group", "remora-capturer", &group)?;
    let unknown = "--group=system:unauthenticated";
    bind(free, "unknown", "remora-capturer", unknown)?;
    // Goes with no namespace: named by this one's.
    let name = format!("{}-operator", own.namespace);
    let role = "--clusterrole=remora-capturer";
    own.run(&[
        "create",
        "clusterrolebinding",
        &name,
        role,
        &account("operator"),
    ])?;
    Ok(())
}

pub(super) fn credentials(
    cluster: &Cluster,
    own: &Shop<'_>,
) -> Result<BTreeMap<&'static str, String>> {
    let access = cluster.access();
    let uid = |account: &str| own.run(&["get", "sa", account, "-o", "jsonpath={.metadata.uid}"]);
    let now = jiff::Timestamp::now().as_second();
    let token = |account: &str, audience: &str, from: i64, until: i64| {
        access.account_token(&Claims {
            namespace: &own.namespace,
            account,
            uid: &uid(account)?,
            audience,
            from,
            until,
        })
    };
    let usual = |account: &str| token(account, ISSUER, now - HOUR, now + HOUR);
    let mut bearers = vec![
        ("garbage", "no.such.token".to_owned()),
        (
            "expired",
            token("capturer", ISSUER, now - 2 * HOUR, now - HOUR)?,
        ),
        (
            "early",
            token("capturer", ISSUER, now + HOUR, now + 2 * HOUR)?,
        ),
        (
            "elsewhere",
            token("capturer", "elsewhere", now - HOUR, now + HOUR)?,
        ),
        ("former", usual("former")?),
        ("impersonator", access.token("mallory")?.to_owned()),
        (ADMIN, access.token(ADMIN)?.to_owned()),
    ];
    for account in [
        "viewer",
        "creator",
        "reader",
        "capturer",
        "custodian",
        "operator",
        "plain",
    ] {
        bearers.push((account, usual(account)?));
    }
    for person in PEOPLE {
        bearers.push((person, access.token(person)?.to_owned()));
    }
    for secret in ["bound", "unbound"] {
        own.run(&["create", "secret", "generic", secret])?;
        let bound = ["--bound-object-kind=Secret", "--bound-object-name", secret];
        let words = [&["create", "token", "capturer"], &bound[..]].concat();
        bearers.push((secret, own.run(&words)?.trim().to_owned()));
    }
    own.run(&["delete", "secret", "unbound"])?;
    // Another account of the same name.
    own.run(&["delete", "serviceaccount", "former"])?;
    own.run(&["create", "serviceaccount", "former"])?;
    let mut credentials: BTreeMap<&'static str, String> = bearers
        .into_iter()
        .map(|(who, token)| (who, format!("Bearer {token}")))
        .collect();
    credentials.insert("basic", "Basic YWxpY2U6c2VjcmV0".to_owned());
    Ok(credentials)
}
