//! The pages.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use super::{CommandError, Control};
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

/// The pages, and the commands: only for those who may open the socket.
pub(super) fn with_commands(control: Arc<dyn Control>) -> Router {
    let commands = Router::new().route("/v1/commands/{name}", post(command)).with_state(Arc::clone(&control));
    router(control).merge(commands)
}

async fn command(State(control): Shared, Path(name): Path<String>, Json(arguments): Json<Value>) -> Response {
    // A task of its own: what was begun is not left half done where the asker hangs up.
    let done = TaskTracker::new().spawn(control.command(name, arguments)).await;
    let error = match done {
        Ok(Ok(answer)) => return Json(answer).into_response(),
        Ok(Err(error)) => error,
        Err(panic) => CommandError::Failed(panic.to_string()),
    };
    let status = match error {
        CommandError::Unknown(_) | CommandError::NotThere(_) => StatusCode::NOT_FOUND,
        CommandError::Refused(_) => StatusCode::CONFLICT,
        CommandError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, Json(json!({ "error": error.to_string() }))).into_response()
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
