//! The answer to a handshake that the handler accepts: what is agreed on with the client.

use super::handler::Accept;
#[cfg(feature = "deflate")]
use crate::link::Compression;
use crate::link::{Agreement, Link, UpgradeRequest};
use crate::logging::Throttle;
#[cfg(feature = "deflate")]
use crate::proto::deflate;
use crate::proto::handshake::{accept_response, choose_subprotocol, first_offered};
use crate::proto::http::HttpError;

/// The 101, or why there can't be one.
pub(super) fn accept_head<S>(
    link: &Link,
    opening: &UpgradeRequest,
    accept: &Accept<S>,
) -> Result<Vec<u8>, HttpError> {
    let subprotocol = match &accept.subprotocol {
        None => first_offered(&opening.request, &link.config().subprotocols),
        Some(name) => Some(choose_subprotocol(&opening.request, name).inspect_err(|_| {
            static UNOFFERED: Throttle = Throttle::new();
            if let Some(more) = UNOFFERED.pass() {
                log::error!("{}: subprotocol {name:?} was not offered{more}", link.id);
            }
        })?),
    };
    #[cfg(feature = "deflate")]
    let (compression, extensions) = agree_on_compression(link, opening).unzip();
    #[cfg(not(feature = "deflate"))]
    let extensions: Option<String> = None;
    if subprotocol.is_some() || extensions.is_some() {
        link.agree(Agreement {
            subprotocol: subprotocol.map(Into::into),
            #[cfg(feature = "deflate")]
            compression,
        });
    }
    // Enough without subprotocol and extensions, and no more than a link takes: if one were cut from this
    // memory later, it would leave a hole.
    let mut head = Vec::with_capacity(144);
    accept_response(
        &opening.upgrade,
        subprotocol,
        extensions.as_deref(),
        &accept.headers,
        &mut head,
    );
    Ok(head)
}

/// permessage-deflate, if we want it and the client offers it in a way we can meet; with the value of
/// the header that says so.
#[cfg(feature = "deflate")]
fn agree_on_compression(link: &Link, opening: &UpgradeRequest) -> Option<(Compression, String)> {
    let want = link.config().deflate.as_ref()?;
    let (agreed, answer) = deflate::answer(&opening.upgrade.offers, want)?;
    Some((Compression::new(agreed, link.handle.shared.clone()), answer))
}
