//! Several hosts of one database, for backends whose driver does not choose well between them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};

/// How long a host that is only busy may take.
const HANGS: Duration = Duration::from_secs(1);

/// The hosts that a backend may connect to, and which of them goes first.
///
/// First goes the one that worked last. A host that hangs still accepts connections, and whoever
/// connects may be cancelled, as by the engine's request timeout, before the host is given up. So
/// the host that an attempt begins with is passed over as well when the attempt is dropped while it
/// is being tried: the next attempt begins with another one, even if nobody saw the end of this one.
///
/// A host that hangs for one connection hangs for all. So each connection has an [`Origin`], which
/// tells whether its host was [passed over](Self::pass_over) since: idle ones need not be tried.
///
/// `H` is what the backend needs to connect to a host, and displays as the host's name in messages.
pub struct Hosts<H> {
    all: Vec<Entry<H>>,
    first: AtomicUsize,
    patience: Duration,
    password: Option<PasswordSource>,
}

/// Gives the password of the moment, whenever a connection is made: for tokens that live for some minutes.
#[derive(Clone)]
pub struct PasswordSource(Arc<dyn Fn() -> BoxFuture<'static, Result<String>> + Send + Sync>);

impl PasswordSource {
    /// Asks `password`.
    pub fn new<F>(password: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<String>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(password())))
    }

    async fn get(&self, patience: Duration) -> Result<String> {
        match tokio::time::timeout(patience, (self.0)()).await {
            Ok(password) => password,
            Err(_) => Err(unavailable(format!(
                "the password was not there within {patience:?}: see what keeps its source, or raise \
                 connect_timeout"
            ))),
        }
    }
}

impl fmt::Debug for PasswordSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordSource")
    }
}

/// Which host a connection leads to, and how often that had been passed over when it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    host: usize,
    epoch: usize,
}

struct Entry<H> {
    host: H,
    /// How often it was passed over.
    epoch: AtomicUsize,
}

impl<H: fmt::Display> Hosts<H> {
    /// Hosts of which each has so long, `patience`, to become ready. The one at the index `first`
    /// goes first, until another is known to work.
    #[must_use]
    pub fn new(all: Vec<H>, first: usize, patience: Duration) -> Self {
        let first = AtomicUsize::new(if first < all.len() { first } else { 0 });
        let all = all.into_iter().map(|host| Entry { host, epoch: AtomicUsize::new(0) });
        Self { all: all.collect(), first, patience, password: None }
    }

    /// Asks for a password before each attempt, one for all hosts.
    #[must_use]
    pub fn with_password(mut self, password: Option<PasswordSource>) -> Self {
        self.password = password;
        self
    }

    /// Tries the hosts in turn until one is ready, each once. Gives what `connect` made of it, and
    /// where it leads.
    ///
    /// `connect` has to do all that makes the connection ready, login included, because a host may
    /// hang at any point of it. It gets the password of the moment, where there is a source of it.
    ///
    /// # Errors
    ///
    /// What `connect` reports of the first host, if no host can be used and none of them says what is
    /// [retryable](Error::is_retryable): a password that all refuse. Otherwise
    /// [`ErrorKind::Unavailable`], since a host that refuses may be one that is being set up; the message
    /// says why for each.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops that of `connect`. The next attempt begins with the host that was
    /// being tried, or with the one after it if this attempt began with that host.
    pub async fn connect<C>(
        &self,
        mut connect: impl AsyncFnMut(&H, Option<&str>) -> Result<C>,
    ) -> Result<(Origin, C)> {
        // Before any host is tried: it is none of theirs if this takes long.
        let password = match &self.password {
            Some(source) => Some(source.get(self.patience).await?),
            None => None,
        };
        let start = self.first.load(Ordering::Relaxed);
        // Only this one has all the time of its attempt. Another is passed over once it has failed,
        // lest one that was hardly asked gives way to one that hangs.
        #[expect(clippy::disallowed_methods, reason = "no lease is judged by this clock")]
        let begun_with = Some((self.origin(start), Instant::now()));
        let mut if_dropped = IfDropped { hosts: self, begun_with };
        let mut failures = Vec::new();
        for at in (start..self.all.len()).chain(0..start) {
            let host = &self.all[at].host;
            let before = self.origin(at);
            let tried = connect(host, password.as_deref());
            let tried = tokio::time::timeout(self.patience, tried).await;
            if_dropped.begun_with = None;
            let failure = match tried {
                Ok(Ok(connection)) => {
                    self.first.store(at, Ordering::Relaxed);
                    return Ok((self.origin(at), connection));
                }
                Ok(Err(error)) => {
                    // It answers: its other connections may be as good as ever, and hard to
                    // replace where it takes no more of them.
                    self.yield_to_next(at);
                    error
                }
                Err(_) => {
                    self.pass_over(before);
                    unavailable(format!(
                        "{host} did not answer within {:?}: check the host, or raise \
                         connect_timeout",
                        self.patience
                    ))
                }
            };
            tracing::debug!(error = %failure, "a host cannot be used");
            failures.push(failure);
        }
        Err(together(failures))
    }

    /// [Passes over](Self::pass_over) the host of a connection with a request on it that nobody waits
    /// for any more, if it had since `since` at least a second to answer: who has less time gives up
    /// on hosts that are only busy, too.
    pub fn give_up(&self, origin: Origin, since: Instant) {
        if since.elapsed() >= HANGS {
            self.pass_over(origin);
        }
    }

    /// Lets another host go first from now on, and makes all connections to this one stale, because
    /// this one has broken it, or did not answer a request in time. A connection that is stale
    /// already says nothing new, and changes nothing.
    pub fn pass_over(&self, connection: Origin) {
        let Origin { host, epoch } = connection;
        let (now, next) = (&self.all[host].epoch, epoch.wrapping_add(1));
        if now.compare_exchange(epoch, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.yield_to_next(host);
        }
    }

    /// The host of a connection.
    #[must_use]
    pub fn get(&self, connection: Origin) -> &H {
        &self.all[connection.host].host
    }

    /// Whether the connection's host was passed over since it was made: it is better closed than
    /// used.
    #[must_use]
    pub fn is_stale(&self, connection: Origin) -> bool {
        self.origin(connection.host) != connection
    }

    fn origin(&self, host: usize) -> Origin {
        Origin { host, epoch: self.all[host].epoch.load(Ordering::Relaxed) }
    }

    fn yield_to_next(&self, host: usize) {
        let next = if host + 1 < self.all.len() { host + 1 } else { 0 };
        let _ = self.first.compare_exchange(host, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Passes a host over when an attempt is dropped that has begun with it, and is still trying it.
struct IfDropped<'a, H: fmt::Display> {
    hosts: &'a Hosts<H>,
    begun_with: Option<(Origin, Instant)>,
}

impl<H: fmt::Display> Drop for IfDropped<'_, H> {
    fn drop(&mut self) {
        if let Some((host, since)) = self.begun_with {
            self.hosts.give_up(host, since);
        }
    }
}

impl<H: fmt::Display> fmt::Debug for Hosts<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.all.iter().map(|entry| entry.host.to_string()).collect();
        f.debug_struct("Hosts")
            .field("all", &names)
            .field("first", &self.first)
            .field("patience", &self.patience)
            .finish()
    }
}

/// One error of all the hosts that cannot be used. A single one speaks for itself, and so does the first
/// where no other try may do better.
fn together(mut failures: Vec<Error>) -> Error {
    if failures.len() == 1 || !failures.iter().any(Error::is_retryable) && !failures.is_empty() {
        return failures.swap_remove(0);
    }
    let said: Vec<&str> = failures.iter().map(Error::message).collect();
    unavailable(format!("no host can be used: {}", said.join("; ")))
}

fn unavailable(message: String) -> Error {
    Error::new(ErrorKind::Unavailable, message)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::pending;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn hosts() -> Hosts<&'static str> {
        Hosts::new(vec!["a", "b", "c"], 0, PATIENCE)
    }

    /// Which hosts are tried, in order, if each of them does as `connect` says.
    async fn tried(
        hosts: &Hosts<&'static str>,
        connect: impl AsyncFn(&str) -> Result<()>,
    ) -> (String, Result<(Origin, ())>) {
        let tried = RefCell::new(String::new());
        let result = hosts
            .connect(async |host, _| {
                tried.borrow_mut().push_str(host);
                connect(host).await
            })
            .await;
        (tried.into_inner(), result)
    }

    async fn works(_: &str) -> Result<()> {
        Ok(())
    }

    async fn is_down(host: &str) -> Result<()> {
        Err(unavailable(format!("{host} is down")).with_backend("some"))
    }

    #[tokio::test]
    async fn host_that_worked_last_goes_first() {
        let hosts = hosts();
        for expected in ["abc", "c"] {
            let (tried, result) = tried(&hosts, async |host| match host {
                "c" => works(host).await,
                _ => is_down(host).await,
            })
            .await;
            assert_eq!(tried, expected);
            assert_eq!(result.unwrap().0.host, 2);
        }
    }

    #[tokio::test]
    async fn given_host_goes_first_and_one_that_is_none_does_not() {
        for (first, expected) in [(1, "bca"), (3, "abc")] {
            let hosts = Hosts::new(vec!["a", "b", "c"], first, PATIENCE);
            assert_eq!(tried(&hosts, is_down).await.0, expected);
        }
    }

    #[tokio::test]
    async fn host_that_failed_later_goes_last() {
        let hosts = hosts();
        let (host, ()) = tried(&hosts, works).await.1.unwrap();
        hosts.pass_over(host);
        hosts.pass_over(host);
        hosts.pass_over(hosts.origin(2));
        assert_eq!(tried(&hosts, is_down).await.0, "bca");
    }

    #[tokio::test]
    async fn two_attempts_at_once_begin_with_the_same_host() {
        let hosts = hosts();
        let slow = async |host: &str| {
            tokio::task::yield_now().await;
            works(host).await
        };
        let (one, other) = tokio::join!(tried(&hosts, slow), tried(&hosts, slow));
        assert_eq!((one.0.as_str(), other.0.as_str()), ("a", "a"));
    }

    #[tokio::test(start_paused = true)]
    async fn password_that_does_not_come_is_no_hosts_fault() {
        let hosts = hosts();
        let connected = tried(&hosts, works).await.1.unwrap().0;
        let hosts = hosts.with_password(Some(PasswordSource::new(pending)));
        let (tried_hosts, result) = tried(&hosts, works).await;
        assert_eq!(tried_hosts, "");
        assert!(result.unwrap_err().is_retryable());
        let given_up = tokio::time::timeout(PATIENCE / 2, tried(&hosts, works)).await;
        assert!(given_up.is_err() && !hosts.is_stale(connected));

        let hosts = hosts.with_password(Some(PasswordSource::new(async || Ok("now".to_owned()))));
        let told = async |_: &&str, password: Option<&str>| Ok(password.map(str::to_owned));
        assert_eq!(hosts.connect(told).await.unwrap().1.as_deref(), Some("now"));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_to_a_host_that_hung_are_stale() {
        let hosts = hosts();
        let connected = async |name| {
            let this = async |host: &str| if host == name { Ok(()) } else { is_down(host).await };
            tried(&hosts, this).await.1.unwrap().0
        };
        let [old, other] = [connected("a").await, connected("b").await];
        // One that says that it is down has answered.
        assert!(!hosts.is_stale(old));

        hosts.pass_over(old);
        assert!(hosts.is_stale(old) && !hosts.is_stale(other));
        let new = connected("a").await;
        hosts.pass_over(old);
        assert!(!hosts.is_stale(new));
        assert_eq!(tried(&hosts, works).await.0, "a");

        assert!(tried(&hosts, async |_| pending().await).await.1.is_err());
        assert!(hosts.is_stale(new) && hosts.is_stale(other));

        let new = connected("c").await;
        let attempt = tried(&hosts, async |_| pending().await);
        assert!(tokio::time::timeout(PATIENCE / 2, attempt).await.is_err());
        assert!(hosts.is_stale(new));
    }

    #[tokio::test(start_paused = true)]
    async fn host_that_hangs_is_given_up_for_the_next() {
        let (tried, result) = tried(&hosts(), async |host| match host {
            "a" => pending().await,
            _ => works(host).await,
        })
        .await;
        assert_eq!((tried.as_str(), result.unwrap().0.host), ("ab", 1));
    }

    #[tokio::test(start_paused = true)]
    async fn host_that_was_being_tried_when_the_attempt_was_dropped_goes_last() {
        let hosts = hosts();
        let attempt = tried(&hosts, async |_| pending().await);
        assert!(tokio::time::timeout(PATIENCE / 2, attempt).await.is_err());
        assert_eq!(tried(&hosts, is_down).await.0, "bca");
    }

    #[tokio::test(start_paused = true)]
    async fn host_that_had_no_time_left_goes_first() {
        let hosts = hosts();
        let attempt = tried(&hosts, async |_| pending().await);
        assert!(tokio::time::timeout(PATIENCE * 3 / 2, attempt).await.is_err());
        assert_eq!(tried(&hosts, is_down).await.0, "bca");
    }

    #[tokio::test(start_paused = true)]
    async fn error_says_why_for_each_host() {
        let (tried, result) = tried(&hosts(), async |host| match host {
            "b" => pending().await,
            _ => is_down(host).await,
        })
        .await;
        assert_eq!(tried, "abc");
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(
            error.to_string(),
            "no host can be used: a is down; b did not answer within 5s: check the host, or raise \
             connect_timeout; c is down"
        );
        let only = Hosts::new(vec!["a"], 0, PATIENCE);
        let error = only.connect(async |host, _| is_down(host).await).await.unwrap_err();
        assert_eq!(error.to_string(), "some: a is down");
    }

    #[tokio::test]
    async fn what_all_hosts_refuse_is_told_and_what_one_refuses_is_asked_of_the_next() {
        let refused = async |_: &str| Err(Error::new(ErrorKind::Permission, "who are you"));
        let (all, result) = tried(&hosts(), refused).await;
        assert_eq!((all.as_str(), result.unwrap_err().kind()), ("abc", ErrorKind::Permission));

        let (some, result) = tried(&hosts(), async |host| match host {
            "a" => refused(host).await,
            "b" => is_down(host).await,
            _ => works(host).await,
        })
        .await;
        assert_eq!((some.as_str(), result.unwrap().0.host), ("abc", 2));
        let (_, result) = tried(&hosts(), async |host| match host {
            "a" => refused(host).await,
            _ => is_down(host).await,
        })
        .await;
        let error = result.unwrap_err();
        assert!(error.is_retryable(), "the one that is down may come back: {error}");
    }
}
