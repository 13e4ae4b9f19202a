//! Responses of a real authority: OpenSSL's (`openssl ts -reply`), with a key of RSA and one of P-256, for a file
//! of the bytes `a manifest`. `tests/tests/evidence.rs` asks it live.

use super::{token::StampError, *};

const RESPONSES: [&[u8]; 2] = [
    include_bytes!("recorded/rsa.tsr"),
    include_bytes!("recorded/ec.tsr"),
];
const AUTHORITY: &[u8] = include_bytes!("recorded/ca.pem");
const ANOTHER: &[u8] = include_bytes!("recorded/other.pem");
const FILE: &[u8] = b"a manifest";

fn proves(response: &[u8], anchors: &Anchors) -> Result<String, StampError> {
    let token = Token::read(response)?;
    token.check(Digest::of(FILE), None)?;
    token.believe(anchors)?;
    Ok(token.time.to_string())
}

#[test]
fn what_an_authority_stamped_is_proved_by_its_certificate_alone() {
    let (authority, another) = (Anchors::from_pem(AUTHORITY), Anchors::from_pem(ANOTHER));
    let (authority, another) = (authority.unwrap(), another.unwrap());
    for response in RESPONSES {
        let time = proves(response, &authority).unwrap();
        assert!(time.starts_with("2026-11-28T"), "{time}");
        assert!(matches!(
            proves(response, &another),
            Err(StampError::Chain(_))
        ));
        let token = Token::read(response).unwrap();
        assert!(matches!(
            token.check(Digest::of(b"another"), None),
            Err(StampError::Imprint)
        ));
        assert!(matches!(
            token.check(Digest::of(FILE), Some(&[1; 8])),
            Err(StampError::Nonce)
        ));
    }
    for bad in [b"".as_slice(), b"x", FILE] {
        assert!(matches!(
            Anchors::from_pem(bad),
            Err(StampError::Anchors(_))
        ));
        assert!(matches!(Token::read(bad), Err(StampError::Form)));
    }
}

/// What is not signed (which digests there are, whose number the certificate has) may change; nothing that is
/// told may.
#[test]
fn no_flipped_bit_changes_what_is_proved() {
    let authority = Anchors::from_pem(AUTHORITY).unwrap();
    for response in RESPONSES {
        let whole = proves(response, &authority).unwrap();
        let mut found = 0;
        for bit in 0..response.len() * 8 {
            let mut flipped = response.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            match proves(&flipped, &authority) {
                Ok(time) => assert_eq!(time, whole, "bit {bit}"),
                Err(_) => found += 1,
            }
        }
        assert!(found * 10 > response.len() * 8 * 9, "{found}");
        for len in 0..response.len() {
            assert!(proves(&response[..len], &authority).is_err(), "{len} bytes");
        }
    }
}

#[test]
fn a_query_is_what_rfc_3161_says() {
    let query = Query::new(Digest::of(FILE), [0xff; 8]);
    let mut expected = vec![0x30, 0x43, 2, 1, 1, 0x30, 0x31, 0x30, 0x0d, 6, 9];
    expected.extend_from_slice(&[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20]);
    expected.extend_from_slice(Digest::of(FILE).as_bytes());
    expected.extend_from_slice(&[
        2, 8, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1, 0xff,
    ]);
    assert_eq!(query.to_der(), expected);
    assert_eq!(query.nonce()[0], 0x7f);
}

#[test]
fn an_authority_is_named_by_http_or_https() {
    let url: Url = "http://tsa.example:318/tsr?x".parse().unwrap();
    assert_ne!(url, "http://tsa.example/tsr?x".parse().unwrap());
    assert!("https://tsa.example/".parse::<Url>().is_ok());
    for bad in [
        "",
        "http://",
        "http://a:b/",
        "http://a b/",
        "http://me@a/",
        "http://a/#x",
        "ftp://a/",
        "file:///a",
    ] {
        assert!(bad.parse::<Url>().is_err(), "{bad}");
    }
}
