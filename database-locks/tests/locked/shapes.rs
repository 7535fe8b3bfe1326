//! Functions of every shape compile under `#[locked]`, do what they say, and stay `Send`.

use std::borrow::Cow;
use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex};

use database_locks::memory::MemoryBackend;
use database_locks::{Error, Lease, Locks, async_trait, blocking, locked};

async fn tick() {
    tokio::task::yield_now().await;
}

async fn touch(text: &str) -> Result<usize, Error> {
    tick().await;
    Ok(text.len())
}

struct Report {
    locks: Locks,
    pages: Vec<String>,
    title: String,
}

impl Report {
    fn new() -> Self {
        Self { locks: Locks::new(MemoryBackend::new()), pages: Vec::new(), title: "t".to_owned() }
    }

    #[locked("report", with = self.locks, ttl = "30s")]
    async fn push(&mut self, page: &str) -> Result<usize, Error> {
        touch(page).await?;
        self.pages.push(page.to_owned());
        tick().await;
        Ok(self.pages.len())
    }

    #[locked("report", with = &self.locks)]
    async fn borrowed_by_name<'a>(&'a self, other: &str) -> Result<&'a str, Error> {
        touch(other).await?;
        Ok(&self.title)
    }

    #[locked("report", with = self.locks.clone())]
    async fn borrowed(&self, short: bool) -> Result<&str, Error> {
        if short {
            return Ok(&self.title);
        }
        tick().await;
        Ok("long")
    }

    #[locked("report", with = self.locks)]
    async fn cow(&self) -> Result<Cow<'_, str>, Error> {
        tick().await;
        Ok((&*self.title).into())
    }

    #[locked("report", with = self.locks)]
    async fn hidden(&self) -> Result<impl Iterator<Item = &str>, Error> {
        tick().await;
        Ok(self.pages.iter().map(String::as_str))
    }

    #[locked("report", with = self.locks)]
    async fn boxed(&self, first: bool) -> Result<Box<dyn Fn() -> usize + Send + '_>, Error> {
        if first {
            return Ok(Box::new(|| self.pages.len()));
        }
        tick().await;
        Ok(Box::new(|| 0))
    }

    #[locked("report", with = self.locks)]
    async fn consumed(self, mut add: usize) -> Result<String, Error> {
        add += self.pages.len();
        tick().await;
        Ok(format!("{}{add}", self.title))
    }

    #[locked("report", with = self.locks)]
    async fn shared(self: Arc<Self>) -> Result<usize, Error> {
        tick().await;
        Ok(self.pages.len())
    }

    #[locked(format!("report-{}", self.title), with = self.locks)]
    fn plain(&mut self, page: &str) -> Result<&str, Error> {
        self.pages.push(page.to_owned());
        match self.pages.len() {
            1 => return Ok(&self.pages[0]),
            _ => Ok(&self.title),
        }
    }

    #[locked("report", with = self.locks)]
    fn plain_hidden(&self) -> Result<impl Iterator<Item = &str>, Error> {
        Ok(self.pages.iter().map(String::as_str))
    }
}

#[locked("generic", with = locks)]
async fn generic<T, F>(
    locks: &Locks,
    text: &T,
    count: F,
    what: impl Display,
) -> Result<usize, Error>
where
    T: AsRef<str> + Sync + ?Sized,
    F: Fn(&str) -> usize + Send,
{
    touch(text.as_ref()).await?;
    let counted = count(text.as_ref());
    tick().await;
    Ok(counted + what.to_string().len())
}

#[locked("lifetimes", with = locks)]
async fn lifetimes<'a, 'b: 'a>(
    locks: &Locks,
    (first, rest): (&'a str, &'b mut Vec<&'a str>),
) -> Result<&'a str, Error> {
    tick().await;
    rest.push(first);
    touch(first).await?;
    Ok(rest[0])
}

type Called<'a> = Pin<Box<dyn Future<Output = usize> + Send + 'a>>;

fn length(text: &str) -> Called<'_> {
    Box::pin(async move { text.len() })
}

#[locked("higher-ranked", with = locks)]
async fn higher_ranked(
    locks: Locks,
    call: &(dyn for<'a> Fn(&'a str) -> Called<'a> + Send + Sync),
    texts: &mut (dyn Iterator<Item = &str> + Send),
) -> Result<usize, Error> {
    let mut sum = 0;
    for text in texts {
        sum += call(text).await + touch(text).await?;
    }
    Ok(sum)
}

#[locked(format!("recursive-{depth}"), with = locks)]
async fn recursive(locks: &Locks, depth: u32) -> Result<u32, Error> {
    if depth == 0 {
        return Ok(0);
    }
    Ok(1 + Box::pin(recursive(locks, depth - 1)).await?)
}

#[locked("returning", with = locks)]
fn returning_future(
    locks: Locks,
    text: &str,
) -> impl Future<Output = Result<usize, Error>> + Send + use<'_> {
    let before = text.len();
    async move { Ok(before + touch(text).await?) }
}

#[async_trait]
trait Job: Sync {
    fn locks(&self) -> &Locks;

    #[locked("job", with = self.locks(), lease = lease)]
    async fn twice(&self, (by, text): (usize, &str)) -> Result<usize, Error> {
        lease.check()?;
        Ok(by * self.once(text).await?)
    }

    async fn once(&self, text: &str) -> Result<usize, Error>;

    async fn change(&mut self, by: usize) -> Result<usize, Error>;
}

#[async_trait]
impl Job for Report {
    fn locks(&self) -> &Locks {
        &self.locks
    }

    #[locked(format!("once-{text}"), with = self.locks)]
    async fn once(&self, text: &str) -> Result<usize, Error> {
        if text.is_empty() {
            return Ok(self.pages.len());
        }
        touch(text).await
    }

    #[locked(format!("change-{by}"), with = self.locks)]
    async fn change(&mut self, mut by: usize) -> Result<usize, Error> {
        by += 1;
        tick().await;
        self.title = "x".repeat(by);
        Ok(self.title.len())
    }
}

trait Native {
    async fn native(&self) -> Result<&str, Error>;

    #[locked("native", with = locks)]
    async fn by_default(&self, locks: Locks) -> Result<usize, Error> {
        Ok(self.native().await?.len())
    }
}

impl Native for Report {
    #[locked("native", with = self.locks)]
    async fn native(&self) -> Result<&str, Error> {
        tick().await;
        Ok(&self.title)
    }
}

#[locked("plain", with = locks, lease = lease)]
fn plain(locks: blocking::Locks, text: &str) -> Result<usize, Error> {
    let lease: Lease = lease;
    lease.check()?;
    Ok(text.len())
}

static LOCKS: LazyLock<Locks> = LazyLock::new(|| Locks::new(MemoryBackend::new()));

/// What the attribute mentions is only borrowed by it.
#[locked(account, with = LOCKS, owner = teller)]
async fn mentioned(account: String, teller: String) -> Result<String, Error> {
    tick().await;
    Ok(account + &teller)
}

#[locked(account, with = LOCKS, owner = teller)]
fn mentioned_plainly(account: String, teller: String) -> Result<String, Error> {
    Ok(account + &teller)
}

#[locked("guarded", with = locks.lock().expect("nobody panicked"))]
async fn guarded(locks: &Mutex<Locks>) -> Result<(), Error> {
    tick().await;
    drop(locks.lock());
    Ok(())
}

#[locked("static", with = *LOCKS, lease = lease)]
fn of_static() -> Result<(), Error> {
    lease.check()
}

/// What is async inside an option's expression is not awaited by the function.
#[locked(
    "async inside",
    with = locks,
    on_lost = |_| drop(async { tick().await }),
    on_wait = |_| {
        let _inside = async || tick().await;
    },
)]
fn async_inside(locks: &Locks) -> Result<(), Error> {
    Ok(())
}

#[tokio::test]
async fn futures_stay_send_and_borrow_what_they_borrowed() {
    tokio::spawn(async {
        let mut report = Report::new();
        let locks = report.locks.clone();
        let page = "one".to_owned();
        assert_eq!(report.push(&page).await.unwrap(), 1);
        assert_eq!(report.borrowed_by_name(&page).await.unwrap(), "t");
        assert_eq!(report.borrowed(true).await.unwrap(), "t");
        assert_eq!(report.borrowed(false).await.unwrap(), "long");
        assert_eq!(report.cow().await.unwrap(), "t");
        assert_eq!(report.hidden().await.unwrap().collect::<Vec<_>>(), ["one"]);
        assert_eq!(report.boxed(true).await.unwrap()(), 1);
        assert_eq!(generic(&locks, "four", str::len, 12).await.unwrap(), 6);
        let mut rest = vec!["a"];
        assert_eq!(lifetimes(&locks, (&page, &mut rest)).await.unwrap(), "a");
        let texts = &mut ["a", "bc"].into_iter();
        assert_eq!(higher_ranked(locks.clone(), &length, texts).await.unwrap(), 6);
        assert_eq!(recursive(&locks, 3).await.unwrap(), 3);
        assert_eq!(returning_future(locks.clone(), "ab").await.unwrap(), 4);
        assert_eq!(report.twice((2, "abc")).await.unwrap(), 6);
        assert_eq!(report.once("").await.unwrap(), 1);
        assert_eq!(report.change(2).await.unwrap(), 3);
        assert_eq!(report.native().await.unwrap(), "xxx");
        assert_eq!(report.by_default(Locks::new(MemoryBackend::new())).await.unwrap(), 3);
        assert_eq!(mentioned("a".to_owned(), "b".to_owned()).await.unwrap(), "ab");
        guarded(&Mutex::new(locks)).await.unwrap();
        assert_eq!(report.consumed(1).await.unwrap(), "xxx2");
        assert_eq!(Arc::new(Report::new()).shared().await.unwrap(), 0);
    })
    .await
    .unwrap();
}

#[test]
fn plain_functions_borrow_what_they_borrowed() {
    let mut report = Report::new();
    assert_eq!(report.plain("one").unwrap(), "one");
    assert_eq!(report.plain("two").unwrap(), "t");
    assert_eq!(report.plain_hidden().unwrap().count(), 2);
    assert_eq!(mentioned_plainly("a".to_owned(), "b".to_owned()).unwrap(), "ab");
    async_inside(&report.locks).unwrap();
    of_static().unwrap();
    assert_eq!(plain(report.locks.into(), "abc").unwrap(), 3);
}
