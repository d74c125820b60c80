//! Certificates and keys, and what is said of those that won't do.

use std::path::PathBuf;

use super::super::Tls;
use super::rig::{CERT, KEY, Rig, tcp_pair};
use crate::error::Error;

const RSA_CERT: &[u8] = include_bytes!("../../../../tests/certs/rsa.pem");
const RSA_KEY: &[u8] = include_bytes!("../../../../tests/certs/rsa.key");
const ARCHIVE: &[u8] = include_bytes!("../../../../tests/certs/ec.p12");

fn certs(name: &str) -> PathBuf {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/certs");
    PathBuf::from(dir).join(name)
}

/// The error says all of these.
#[track_caller]
fn refused(result: Result<Tls, Error>, says: &[&str]) {
    let Err(Error::Tls(text)) = result else {
        panic!("{result:?}");
    };
    for part in says {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn every_way_to_load_one_works() {
    let ways = [
        (Tls::from_pem(CERT, KEY), CERT),
        (Tls::from_pem(RSA_CERT, RSA_KEY), RSA_CERT),
        (Tls::from_pem_files(certs("ec.pem"), certs("ec.key")), CERT),
        (Tls::from_pkcs12(ARCHIVE, "framemill"), CERT),
        (
            Tls::from_pkcs12_file(certs("rsa.p12"), "framemill"),
            RSA_CERT,
        ),
    ];
    for (tls, root) in ways {
        let mut rig = Rig::over(tcp_pair(), &tls.unwrap(), root);
        rig.shake_hands();
    }
}

#[test]
fn text_around_the_blocks_is_skipped() {
    let mut key = b"Bag Attributes\n    friendlyName: x\n".to_vec();
    key.extend(KEY);
    let mut cert = b"subject=CN = x\n".to_vec();
    cert.extend(CERT);
    Tls::from_pem(&cert, &key).unwrap();
}

#[test]
fn debug_tells_nothing() {
    let tls = Tls::from_pem(CERT, KEY).unwrap();
    assert_eq!(format!("{tls:?}"), "Tls { .. }");
}

#[test]
fn a_missing_file_is_named() {
    refused(
        Tls::from_pem_files(certs("none.pem"), certs("ec.key")),
        &["none.pem", "No such file"],
    );
    refused(
        Tls::from_pem_files(certs("ec.pem"), certs("none.key")),
        &["none.key", "No such file"],
    );
    refused(Tls::from_pkcs12_file(certs("none.p12"), ""), &["none.p12"]);
}

#[test]
fn what_is_in_the_wrong_place_is_named() {
    let (cert, key) = (certs("ec.pem"), certs("ec.key"));
    refused(
        Tls::from_pem_files(&key, &cert),
        &["ec.key", "no certificate"],
    );
    refused(
        Tls::from_pem_files(&cert, &cert),
        &["ec.pem", "no private key"],
    );
    refused(
        Tls::from_pem(b"", KEY),
        &["certificate chain", "no certificate"],
    );
    refused(
        Tls::from_pem(CERT, b"\xff"),
        &["private key", "no private key"],
    );
    refused(Tls::from_pkcs12(CERT, "x"), &["PKCS#12"]);
    refused(Tls::from_pkcs12(b"", "x"), &["PKCS#12"]);
}

#[test]
fn a_key_of_another_certificate_is_found_out() {
    for (cert, key) in [("ec.pem", "rsa.key"), ("rsa.pem", "ec.key")] {
        refused(
            Tls::from_pem_files(certs(cert), certs(key)),
            &[cert, key, "belong"],
        );
    }
}

#[test]
fn a_wrong_password_is_called_so() {
    let says = &["ec.p12", "wrong password"];
    refused(Tls::from_pkcs12_file(certs("ec.p12"), "framemil"), says);
    refused(Tls::from_pkcs12_file(certs("ec.p12"), ""), says);
}

#[test]
fn an_encrypted_key_is_refused_with_the_remedy() {
    let says = &["ec.encrypted.key", "encrypted", "openssl pkcs8 -topk8"];
    let key = certs("ec.encrypted.key");
    refused(Tls::from_pem_files(certs("ec.pem"), key), says);
}

#[test]
fn keys_in_older_forms_are_refused_with_the_remedy() {
    for (cert, key) in [("ec.pem", "ec.sec1.key"), ("rsa.pem", "rsa.pkcs1.key")] {
        let says = &[key, "not in PKCS#8", "openssl pkcs8 -topk8"];
        refused(Tls::from_pem_files(certs(cert), certs(key)), says);
    }
}

#[test]
fn damaged_blocks_are_refused() {
    for at in [40, 100, 150] {
        let mut key = KEY.to_vec();
        key[at] = b'!';
        let result = Tls::from_pem(CERT, &key);
        assert!(matches!(result, Err(Error::Tls(_))), "{result:?}");
        let mut cert = CERT.to_vec();
        cert[at] = b'!';
        let result = Tls::from_pem(&cert, KEY);
        assert!(matches!(result, Err(Error::Tls(_))), "{result:?}");
    }
}
