//! A [`Receipt`] settles when a message is durable everywhere it must be.

use smallvec::SmallVec;

use super::{Mark, Rejected};

/// What an acknowledgement waits for: positions in logs and in the store. Without any it is settled at once.
#[derive(Clone, Debug, Default)]
#[must_use = "the publisher may be acknowledged only when the receipt has settled"]
pub struct Receipt {
    /// A message seldom goes to more than three links and the store.
    waits: SmallVec<[(Mark, u64); 4]>,
}

impl Receipt {
    /// Waits for one more position.
    pub fn add(&mut self, mark: Mark, position: u64) {
        self.waits.push((mark, position));
    }

    /// Whether it is settled now: `None` not yet. The first rejection decides.
    #[must_use]
    pub fn decided(&self) -> Option<Result<(), Rejected>> {
        let mut undecided = false;
        for (mark, position) in &self.waits {
            match mark.decided(*position) {
                Some(Ok(())) => {}
                Some(Err(rejected)) => return Some(Err(rejected)),
                None => undecided = true,
            }
        }
        if undecided { None } else { Some(Ok(())) }
    }

    /// Waits until it is settled. Cancel safe.
    ///
    /// # Errors
    /// [`Rejected`]: it will never be durable everywhere; the publisher must not be acknowledged.
    pub async fn settled(&mut self) -> Result<(), Rejected> {
        for (mark, position) in &self.waits {
            mark.passed(*position).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::MarkSender;
    use super::*;

    #[test]
    fn a_receipt_without_positions_is_settled_at_once() {
        assert_eq!(Receipt::default().decided(), Some(Ok(())));
    }

    #[test]
    fn a_receipt_settles_when_the_last_log_has_passed_and_rejects_when_one_fails() {
        let (first, second) = (MarkSender::new(0), MarkSender::new(0));
        let mut receipt = Receipt::default();
        receipt.add(first.mark(), 4);
        receipt.add(second.mark(), 0);
        first.advance(5);
        assert_eq!(receipt.decided(), None);
        second.advance(1);
        assert_eq!(receipt.decided(), Some(Ok(())));
        receipt.add(second.mark(), 1);
        second.fail("disk");
        assert_eq!(receipt.decided(), Some(Err(Rejected("disk".into()))));
    }

    #[tokio::test]
    async fn a_log_that_goes_away_rejects_never_accepts() {
        let log = MarkSender::new(0);
        let mut receipt = Receipt::default();
        receipt.add(log.mark(), 0);
        drop(log);
        assert!(receipt.settled().await.is_err());
    }
}
