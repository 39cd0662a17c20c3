//! Clients whose writes leave this process only while it leads.
//!
//! Two checks, so that no path goes around them. Every request that is no read is refused at once when the term is over
//! ([`guarded`]). And the connections on which they travel ([`client`]) ask again before every write to the socket: between the
//! first check and the wire lie a queue, a new connection with its TLS, and any time that the process was stopped for.
//! What a connection had already handed to the kernel is given up by it when nobody acknowledges it in time, so that a network that
//! comes back delivers nothing old.

use std::{io, time::Duration};

use hyper::{Method, Request, Response, Uri};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt},
};
use tower::{BoxError, ServiceBuilder, ServiceExt};

use super::{gate::Leadership, next::Timing};
use crate::{fenced_stream::FencedStream, token_file};

/// How long the API server may take for the answer to a write.
const SILENCE: Duration = Duration::from_secs(60);

/// A client for `term`: it reads through `reads`, and writes on connections of its own that are closed to the end of the term.
pub fn client(config: &Config, timing: Timing, term: &Leadership, reads: Client) -> kube::Result<Client> {
    let (config, token) = token_file::split(config.clone())?;
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(timing.renew));
    http.set_tcp_user_timeout(Some(timing.lease.saturating_sub(timing.renew)));
    // A peer that is gone in the middle of its answer is missed by that, too: nothing of ours is unacknowledged then.
    http.set_keepalive(Some(timing.renew));
    http.set_keepalive_interval(Some(timing.renew));
    let term_of = term.clone();
    let connector = tower::service_fn(move |uri: Uri| {
        let (term, connecting) = (term_of.clone(), http.clone().oneshot(uri));
        async move {
            let stream = connecting.await?;
            // Closed with a reset: what was not acknowledged yet is thrown away.
            socket2::SockRef::from(stream.inner()).set_linger(Some(Duration::ZERO))?;
            let fenced = FencedStream::new(stream.into_inner(), move || may_write(&term));
            Ok::<_, BoxError>(TokioIo::new(fenced))
        }
    });
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let writes = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .option_layer(token)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(HttpClient::builder(TokioExecutor::new()).build::<_, Body>(connector));
    let writes = Client::new(writes, config.default_namespace);
    Ok(split(term, reads, writes))
}

fn may_write(term: &Leadership) -> io::Result<()> {
    let epoch = term.epoch();
    let lasts = term.lasts();
    lasts
        .then_some(())
        .ok_or_else(|| io::Error::other(super::NotLeading { epoch }))
}

/// `client`, whose writes are refused when `term` is over. For what has no network of its own, such as tests.
pub fn guarded(term: &Leadership, client: Client) -> Client {
    split(term, client.clone(), client)
}

fn split(term: &Leadership, reads: Client, writes: Client) -> Client {
    let namespace = reads.default_namespace().to_owned();
    let term = term.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (term, reads, writes) = (term.clone(), reads.clone(), writes.clone());
        async move {
            if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
                return reads.send(request).await.map_err(BoxError::from);
            }
            let under_way = term.begin()?;
            // On a task of its own: who asked may be dropped, and the write is then still waited for before the term is given up.
            let sent = tokio::spawn(async move {
                let answer = tokio::time::timeout(SILENCE, writes.send(request)).await;
                drop(under_way);
                answer
            });
            match sent.await? {
                Ok(answer) => Ok::<Response<Body>, BoxError>(answer?),
                Err(_) => {
                    Err(io::Error::new(io::ErrorKind::TimedOut, "the API server gave no answer").into())
                }
            }
        }
    });
    Client::new(service, namespace)
}

#[cfg(test)]
mod tests;
