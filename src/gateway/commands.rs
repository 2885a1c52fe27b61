//! What the operator's tools ask of a running gateway, over its admin socket.

use serde_json::Value;

use super::Shared;
use crate::admin::CommandError;

impl Shared {
    pub(super) async fn obey(&self, name: &str, arguments: Value) -> Result<Value, CommandError> {
        match name {
            _ if name.starts_with("replay-") => self.obey_replay(name, arguments).await,
            _ => Err(CommandError::Unknown(name.to_owned())),
        }
    }
}
