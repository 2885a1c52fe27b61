//! The pages.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};

use super::Control;
use crate::telemetry::board::Status;
use crate::telemetry::metrics;

type Shared = State<Arc<dyn Control>>;

pub(super) fn router(control: Arc<dyn Control>) -> Router {
    Router::new()
        .route("/livez", get(|| std::future::ready("alive\n")))
        .route("/readyz", get(|State(control): Shared| std::future::ready(readiness(&control.status()))))
        .route("/metrics", get(|State(control): Shared| std::future::ready(scrape(&*control))))
        .route("/v1/status", get(|State(control): Shared| std::future::ready(Json(control.status()))))
        .with_state(control)
}

fn readiness(status: &Status) -> Response {
    match (status.ready, status.phase.as_str()) {
        (_, "stopping") => (StatusCode::SERVICE_UNAVAILABLE, "the gateway is stopping\n").into_response(),
        (false, _) => {
            let reason = match &status.broker.store_error {
                Some(error) => format!("not ready: {error}\n"),
                None => "not ready: listeners, buffers and store are not all open yet\n".to_owned(),
            };
            (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
        }
        (true, _) => "ready\n".into_response(),
    }
}

fn scrape(control: &dyn Control) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], control.metrics()).into_response()
}
