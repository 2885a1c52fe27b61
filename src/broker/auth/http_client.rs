//! A small HTTP client for the services that know who a client is: connections are kept and used again, answers are bounded in
//! time and size, redirects are not followed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;

use super::tls::{self, TlsError};
use crate::broker::reload::Watch;

/// Connections that are kept open without a request.
const IDLE_MAX: usize = 16;

/// How long.
const IDLE_FOR: Duration = Duration::from_secs(60);

/// What carries requests.
type Inner = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// See the module.
#[derive(Debug)]
pub(super) struct HttpClient {
    /// A file of PEM certificates that servers are checked by, in place of the web's.
    ca: Option<PathBuf>,
    /// Made as soon as that file can be used, and again when it has changed.
    inner: Mutex<Option<Inner>>,
    watch: Mutex<Watch>,
    timeout: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("{0}")]
    Failed(String),
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl HttpClient {
    /// `timeout`: for a whole exchange, connecting included.
    pub(super) fn new(ca: Option<PathBuf>, timeout: Duration) -> Self {
        let watch = Mutex::new(Watch::taken(ca.as_deref()));
        Self { ca, inner: Mutex::default(), watch, timeout }
    }

    /// The file of its authority is read again: if it has changed, or in any case (`always`). Connections that are open live on.
    pub(super) fn reload(&self, always: bool) {
        if self.ca.is_some() && self.watch.lock().is_due(self.ca.as_deref(), always) {
            *self.inner.lock() = None;
        }
    }

    /// Whether that file is another than when this was asked last, and can be used.
    pub(super) fn take_news(&self) -> bool {
        self.watch.lock().take_news() && tls::client_config(self.ca.as_deref()).is_ok()
    }

    fn inner(&self) -> Result<Inner, HttpError> {
        if let Some(inner) = &*self.inner.lock() {
            return Ok(inner.clone());
        }
        let config = tls::client_config(self.ca.as_deref())?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(self.timeout));
        let https = HttpsConnectorBuilder::new().with_tls_config(Arc::unwrap_or_clone(config));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_FOR)
            .pool_max_idle_per_host(IDLE_MAX)
            .build(https.https_or_http().enable_http1().wrap_connector(tcp));
        Ok(self.inner.lock().get_or_insert(client).clone())
    }

    pub(super) async fn get(&self, url: &Uri, body_max: usize) -> Result<(StatusCode, Bytes), HttpError> {
        let request = Request::get(url).header("accept", "application/json").body(Full::default());
        self.send(request.map_err(|error| HttpError::Failed(error.to_string()))?, body_max).await
    }

    /// Status and body, whatever the status.
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        body_max: usize,
    ) -> Result<(StatusCode, Bytes), HttpError> {
        let inner = self.inner()?;
        let exchange = async {
            let answer = inner.request(request).await.map_err(|error| HttpError::Failed(chain(&error)))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), body_max).collect().await.map_err(|error| {
                if error.is::<http_body_util::LengthLimitError>() {
                    HttpError::TooLong(body_max)
                } else {
                    HttpError::Failed(error.to_string())
                }
            })?;
            Ok((status, body.to_bytes()))
        };
        tokio::time::timeout(self.timeout, exchange).await.map_err(|_elapsed| HttpError::Timeout(self.timeout))?
    }
}

/// An error with its causes: the outermost alone says only "client error (Connect)".
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
