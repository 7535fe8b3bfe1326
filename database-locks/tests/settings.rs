//! Settings, from the environment of a real process to locks.

use database_locks::{ErrorKind, Locks, Settings};

#[tokio::test]
async fn locks_that_are_switched_off_need_no_database() {
    for settings in [
        Settings::new().enabled(false),
        Settings::new().enabled(false).url("mongodb://nobody/serves/this"),
    ] {
        // In a task, since futures must be Send.
        let started = tokio::spawn(async move {
            settings.migrate().await?;
            settings.connect().await
        });
        let locks = started.await.unwrap().unwrap();
        assert!(!locks.is_enabled());
        let both = [locks.lock("x").acquire().await, locks.lock("x").acquire().await];
        assert!(both.iter().all(Result::is_ok));
        // They can be switched off in the options, too.
        let options = Locks::builder().disabled(true);
        assert!(!Settings::new().connect_with(options).await.unwrap().is_enabled());
    }
}

#[test]
fn locks_that_are_switched_off_need_no_async_either() {
    let settings = Settings::new().enabled(false);
    settings.migrate_blocking().unwrap();
    assert!(!settings.connect_blocking().unwrap().is_enabled());
    for error in [
        Settings::new().connect_blocking().unwrap_err(),
        Settings::new().migrate_blocking().unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert!(error.to_string().contains("DATABASE_LOCKS_URL"), "{error}");
    }
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use std::env;
    use std::fs;
    use std::process::{Command, Output};
    use std::time::Duration;

    use database_locks::{Locks, Owner, Settings, Ttl};
    use tempfile::{TempDir, tempdir};

    fn url(folder: &TempDir) -> String {
        format!("sqlite:{}", folder.path().join("locks.db").display())
    }

    #[tokio::test]
    async fn settings_decide_where_locks_are_and_what_they_do() {
        let folder = tempdir().unwrap();
        let status = folder.path().join("status");
        let settings = Settings::new()
            .url(url(&folder))
            .table("mine")
            .default_ttl(Duration::from_secs(60))
            .default_renew_before(Duration::from_secs(50))
            .status_file(&status);
        settings.migrate().await.unwrap();
        let locks = settings.connect().await.unwrap();
        assert!(locks.is_enabled());
        let guard = locks.lock("x").acquire().await.unwrap();
        let remaining = locks.list("").await.unwrap()[0].remaining.unwrap();
        assert!(remaining > Duration::from_secs(30), "the TTL: {remaining:?}");

        let elsewhere = settings.clone().table("theirs").connect().await.unwrap();
        let other = elsewhere.lock("x").try_acquire().await.unwrap();
        other.expect("another table is another lock").release().await.unwrap();
        guard.release().await.unwrap();
        locks.shutdown().await;
        assert_eq!(fs::read_to_string(status).unwrap(), "0");
    }

    #[tokio::test]
    async fn settings_take_the_place_of_options() {
        let folder = tempdir().unwrap();
        let options = || {
            let owner = Owner::label_only("of the options").unwrap();
            Locks::builder().default_owner(owner).default_ttl(Ttl::Infinite)
        };
        let settings = Settings::new().url(url(&folder));
        let of = async |locks: Locks| {
            let guard = locks.lock("x").acquire().await.unwrap();
            let lease = locks.list("").await.unwrap().remove(0);
            guard.release().await.unwrap();
            (lease.lease.owner.to_string(), lease.remaining.is_some())
        };
        let locks = settings.connect_with(options()).await.unwrap();
        assert_eq!(of(locks).await, ("of the options".to_owned(), false));
        let settings = settings.default_ttl(Duration::from_secs(60));
        let locks = settings.connect_with(options()).await.unwrap();
        assert_eq!(of(locks).await, ("of the options".to_owned(), true));
    }

    const CHILD: &str = "DATABASE_LOCKS_TEST_CHILD";

    /// Runs the test of this name again, in a process with this environment.
    fn child(test: &str, environment: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env::current_exe().expect("this program"));
        command.args(["--exact", "--nocapture", &format!("sqlite::{test}")]).env(CHILD, "1");
        for variable in
            ["ENABLED", "URL", "TABLE", "STATUS_FILE", "DEFAULT_TTL", "DEFAULT_TTL_RENEW"]
        {
            command.env_remove(format!("DATABASE_LOCKS_{variable}"));
        }
        command.envs(environment.iter().copied()).output().expect("this program again")
    }

    #[test]
    fn the_environment_of_a_process_is_read() {
        if env::var_os(CHILD).is_some() {
            let settings = Settings::from_env().unwrap();
            settings.migrate_blocking().unwrap();
            let locks = settings.connect_blocking().unwrap();
            let _held_until_the_process_ends = locks.lock("x").acquire().unwrap();
            std::process::exit(7);
        }
        let folder = tempdir().unwrap();
        let (url, status) = (url(&folder), folder.path().join("status"));
        let ended = child(
            "the_environment_of_a_process_is_read",
            &[
                ("DATABASE_LOCKS_ENABLED", "Yes"),
                ("DATABASE_LOCKS_URL", &url),
                ("DATABASE_LOCKS_TABLE", "mine"),
                ("DATABASE_LOCKS_STATUS_FILE", status.to_str().unwrap()),
                ("DATABASE_LOCKS_DEFAULT_TTL", "infinite"),
                ("DATABASE_LOCKS_DEFAULT_TTL_RENEW", "500ms"),
            ],
        );
        assert_eq!(ended.status.code(), Some(7), "{}", String::from_utf8_lossy(&ended.stderr));
        assert!(status.exists());
        let locks = Settings::new().url(&url).table("mine").connect_blocking().unwrap();
        let leases = locks.list("").unwrap();
        assert_eq!(leases.len(), 1);
        assert_eq!(leases[0].remaining, None, "the TTL");
    }

    #[test]
    fn a_process_whose_environment_is_malformed_is_told_where() {
        if env::var_os(CHILD).is_some() {
            println!("told: {}", Settings::from_env().unwrap_err());
            return;
        }
        let environment = [("DATABASE_LOCKS_ENABLED", "maybe")];
        let ended = child("a_process_whose_environment_is_malformed_is_told_where", &environment);
        let told = String::from_utf8(ended.stdout).unwrap();
        assert!(told.contains("told: DATABASE_LOCKS_ENABLED: neither yes nor no"), "{told}");
    }
}
