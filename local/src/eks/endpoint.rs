//! A cluster's API endpoint: silent for a while after ACTIVE, then a way through to the API server.
//!
//! On AWS the name of a new cluster's endpoint resolves, and its load balancer answers, only some time after
//! DescribeCluster says ACTIVE; whoever speaks to it earlier gets no answer.

use std::time::Instant;

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Opens an endpoint in front of the API server at `url` and answers its own URL. Connections before `usable_from`
/// are closed without an answer.
pub(super) async fn open(url: &str, usable_from: Instant, ending: CancellationToken) -> anyhow::Result<String> {
    let target = url.trim_start_matches("https://").trim_end_matches('/').to_owned();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("opening the cluster's endpoint")?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        tokio::select! {
            () = ending.cancelled() => {}
            () = pass_on(listener, target, usable_from, ending.clone()) => {}
        }
    });
    Ok(format!("https://{address}"))
}

async fn pass_on(listener: TcpListener, target: String, usable_from: Instant, ending: CancellationToken) {
    loop {
        let Ok((mut client, _)) = listener.accept().await else { continue };
        if Instant::now() < usable_from {
            continue;
        }
        let (target, ending) = (target.clone(), ending.clone());
        tokio::spawn(async move {
            let Ok(mut server) = TcpStream::connect(&target).await else { return };
            // A lost connection is the client's and the API server's to notice.
            tokio::select! {
                () = ending.cancelled() => {}
                _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
            }
        });
    }
}
