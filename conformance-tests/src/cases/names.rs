//! Names are bytes.

use database_locks_core::{ErrorKind, LockName, Release, Released, Renewal, Renewed, Verdict};

use crate::context::{Context, LONG, claim, free, lease_of, list, refuse, take, ttl};
use crate::harness::Outcome;

/// A batch that is no small one.
const MANY: usize = 60;

pub(crate) async fn case_makes_different_locks(context: Context) -> Outcome {
    all_differ(&context, &["Job", "job", "JOB", "straße", "STRASSE", "ﬁ", "fi"]).await
}

pub(crate) async fn accents_make_different_locks(context: Context) -> Outcome {
    all_differ(&context, &["resume", "résumé", "resumé", "ä", "ae", "a", "ø", "o"]).await
}

pub(crate) async fn trailing_space_makes_different_locks(context: Context) -> Outcome {
    all_differ(&context, &["job", "job ", "job  ", " job", "job\u{a0}", "job\u{200b}"]).await
}

pub(crate) async fn nfc_and_nfd_are_different_locks(context: Context) -> Outcome {
    all_differ(&context, &["caf\u{e9}", "cafe\u{301}", "\u{212b}", "\u{c5}", "A\u{30a}"]).await
}

pub(crate) async fn longest_name_works_and_one_byte_more_is_invalid(context: Context) -> Outcome {
    let client = context.client().await?;
    let room = LockName::MAX_BYTES - context.prefix().len();
    for padding in ["x".repeat(room), "🔒".repeat(room / 4) + &"x".repeat(room % 4)] {
        let name = context.name(&padding);
        assert_eq!(name.as_str().len(), LockName::MAX_BYTES);
        let lease = take(&client, &claim(&name)).await?;
        // One that is the same in all but the last bytes.
        let start = &name.as_str()[..name.as_str().floor_char_boundary(LockName::MAX_BYTES - 1)];
        let end = "y".repeat(LockName::MAX_BYTES - start.len());
        let twin = LockName::new(format!("{start}{end}"))?;
        take(&client, &claim(&twin)).await?;
        refuse(&client, &claim(&name)).await?;
        let listed = list(&client, name.as_str()).await?;
        assert_eq!(listed.len(), 1, "the longest name must be listed");
        assert_eq!(listed[0].lease, lease, "the longest name must come back whole");
        free(&client, &lease).await?;

        let longer = LockName::new(format!("{name}x")).map_err(|error| error.kind());
        assert_eq!(longer, Err(ErrorKind::InvalidName), "one byte more must be refused");
    }
    Ok(())
}

pub(crate) async fn empty_nul_and_control_characters_are_invalid(_: Context) -> Outcome {
    for wrong in ["", "\0", "a\0b", "a\nb", "\t", "a\r", "\u{1b}[0m", "\u{7f}", "\u{85}"] {
        let name = LockName::new(wrong).map_err(|error| error.kind());
        assert_eq!(name, Err(ErrorKind::InvalidName), "{wrong:?} must be refused as a name");
    }
    Ok(())
}

pub(crate) async fn quotes_percent_backslash_and_emoji_are_plain_text(context: Context) -> Outcome {
    let names = [
        "'",
        "''",
        "\"",
        "\"\"",
        "`",
        "%",
        "%%",
        "_",
        "__",
        "\\",
        "\\\\",
        "\\'",
        "\\n",
        "\\0",
        "🔒",
        "👩‍👩‍👧",
        "👩",
        "$1",
        "?",
        ":name",
        "{}",
        "*",
        "#",
        "--",
        "a/b",
        "a;b",
    ];
    all_differ(&context, &names).await?;
    // A prefix is text as well, and no pattern.
    let client = context.client().await?;
    for name in ["a", "aa", "b"] {
        take(&client, &claim(&context.name(name))).await?;
    }
    for pattern in ["%", "_", "*", "?", "a%", "_a", "[ab]", "\\", "'"] {
        let listed = list(&client, context.name(pattern).as_str()).await?;
        assert_eq!(listed, [], "no name starts with {pattern:?}");
    }
    Ok(())
}

pub(crate) async fn names_that_look_like_sql_are_plain_text(context: Context) -> Outcome {
    let names = [
        "'; DROP TABLE database_locks_lock; --",
        "' OR '1'='1",
        "\" OR \"\"=\"",
        "x'); DELETE FROM database_locks_lock; --",
        "$$; SELECT pg_sleep(60); $$",
        "/* comment */",
        "NULL",
        "DEFAULT",
        "E'\\x41'",
    ];
    all_differ(&context, &names).await
}

/// Holds all the names at once, and finds each of them held, listed whole, and free again.
async fn all_differ(context: &Context, names: &[&str]) -> Outcome {
    let client = context.client().await?;
    let there = context.client().await?;
    let mut leases = Vec::new();
    for name in names {
        leases.push(take(&client, &claim(&context.name(name))).await?);
    }
    for lease in &leases {
        refuse(&there, &claim(&lease.name)).await?;
    }
    let renewals: Vec<_> =
        leases.iter().map(|lease| Renewal::new(lease.clone(), ttl(LONG))).collect();
    let renewed = there.renew(&renewals).await?;
    assert_eq!(renewed, vec![Renewed::Alive; leases.len()], "all names must be renewed at once");
    let mut listed: Vec<_> =
        list(&there, &context.prefix()).await?.into_iter().map(|info| info.lease).collect();
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    leases.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(listed, leases, "the list must show each name, byte by byte");
    for lease in &leases {
        free(&there, lease).await?;
    }

    // All at once, and many more, since a store may treat many otherwise than a few.
    let mut claims: Vec<_> = names.iter().map(|name| claim(&context.name(name))).collect();
    let others = (claims.len()..MANY).map(|i| claim(&context.name(&format!("other {i}"))));
    claims.extend(others.collect::<Vec<_>>());
    let mut leases = Vec::new();
    for (claim, verdict) in claims.iter().zip(client.acquire(&claims).await?) {
        match verdict {
            granted @ Verdict::Granted(_) => leases.push(lease_of(claim, &granted)),
            // Names that nobody has asked for before may take another request.
            _ => leases.push(take(&client, claim).await?),
        }
    }
    for lease in &leases[..names.len()] {
        refuse(&there, &claim(&lease.name)).await?;
    }
    let released = there.release(&Release::free_all(&leases)).await?;
    assert_eq!(released, vec![Released::Done; leases.len()], "all names must be released at once");
    Ok(())
}
