//! Forgetting idle names in the background.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::{sleep, timeout};

use crate::backend::LockBackend;

/// A round comes eight times in the time that a name has to be idle, though within these.
const ROUNDS: u32 = 8;
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_hours(1);
/// So few names are not worth another look at the table.
const FEW: u64 = 500;

/// Forgets names that nobody has held for `idle`, again and again.
pub(crate) async fn repeat(
    backend: Arc<dyn LockBackend>,
    idle: Duration,
    request_timeout: Duration,
) {
    let pause = (idle / ROUNDS).clamp(SHORTEST, LONGEST);
    let mut is_known_to_fail = false;
    loop {
        // At another time than other processes.
        sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        loop {
            let call = AssertUnwindSafe(async { backend.clean_up(idle).await }).catch_unwind();
            let outcome = timeout(request_timeout, call).await;
            let was_known_to_fail = is_known_to_fail;
            is_known_to_fail = !matches!(outcome, Ok(Ok(Ok(_))));
            match outcome {
                Ok(Ok(Ok(names))) => {
                    tracing::debug!(names, "forgot idle names");
                    // Some come of age all the time.
                    if names < FEW {
                        break;
                    }
                }
                // Once, however long that goes on.
                _ if was_known_to_fail && is_known_to_fail => break,
                Ok(Ok(Err(error))) => {
                    tracing::warn!(%error, "cannot forget idle names, will try again");
                    break;
                }
                Ok(Err(_panic)) => {
                    tracing::warn!(
                        "the backend panicked while it forgot idle names: this is a defect of it, \
                         will try again"
                    );
                    break;
                }
                Err(_elapsed) => {
                    tracing::warn!(after = ?request_timeout, "forgetting idle names took too long");
                    break;
                }
            }
        }
    }
}
