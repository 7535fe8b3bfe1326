//! Galera: MariaDB with a writer on every node.

use std::ffi::OsString;
use std::fs;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::access::{Access, Database};
use crate::folder::{Folder, random_hex};
use crate::install::{Account, GALERA, RSYNC};
use crate::mariadb::MariaDbProduct;
use crate::mysqld::{data_dir, launch, options, prepare_data, socket, superuser};
use crate::process::{Durability, Process, Server, flag, free_port, port_was_taken};

const NODES: usize = 3;

/// Generous, because a node may have to fetch all data from another, and because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(20);

/// What Galera asks of a node, and a cache of recent writes that is large enough for tests.
const SETTINGS: [(&str, &str); 5] = [
    ("wsrep_on", "ON"),
    ("binlog_format", "ROW"),
    ("default_storage_engine", "InnoDB"),
    ("innodb_autoinc_lock_mode", "2"),
    ("wsrep_sst_method", "rsync"),
];

/// A throwaway cluster of three MariaDB nodes on this machine, every one of which takes writes. Stopped and removed
/// when dropped.
///
/// All nodes have the database `app`, the superuser `root` with one password, and what is written on any of them. A
/// node is a [`Server`] that can be paused, killed and started again, and is used as the [`Access`] to it.
///
/// # Quorum
///
/// The nodes that see most of those last seen go on. [`isolate`](Self::isolate) cuts one off; so does
/// [`pause`](Server::pause), which the others notice after the [`FailureDetection`]'s time. A node that is cut off
/// refuses all but `SET` and `SHOW` with error 1047. After all nodes went, [`bootstrap`](Self::bootstrap) the one that
/// went last, and then start the others again.
#[derive(Debug)]
pub struct Galera {
    nodes: Vec<GaleraNode>,
}

impl Galera {
    /// Starts a cluster with default settings, and waits until its nodes have found each other.
    ///
    /// # Errors
    ///
    /// When MariaDB, Galera or rsync are not installed (the message says how to get them) or a node does not come up
    /// (the message has the end of its log).
    pub fn start() -> Result<Galera> {
        Galera::builder().start()
    }

    /// A cluster with settings of its own.
    pub fn builder() -> GaleraBuilder {
        GaleraBuilder::default()
    }

    /// The cluster that all tests of this process share, started by the first who asks and removed when the process
    /// ends. Take a [`database`](Self::database) of your own from it, and neither change its settings nor harm a node.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn shared() -> Result<&'static Galera> {
        static SHARED: OnceLock<Result<Galera, String>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| {
            let builder = Galera::builder().failure_detection(FailureDetection::Patient);
            builder.start().map_err(|error| format!("{error:#}"))
        });
        shared.as_ref().map_err(|message| anyhow!(message.clone()))
    }

    /// A node, counted from 0.
    ///
    /// # Panics
    ///
    /// When there is no such node: there are three.
    #[must_use]
    pub fn node(&self, index: usize) -> &GaleraNode {
        &self.nodes[index]
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[GaleraNode] {
        &self.nodes
    }

    /// One URL with all nodes: `mysql://root:PASSWORD@127.0.0.1:P0,127.0.0.1:P1,127.0.0.1:P2/app`.
    #[must_use]
    pub fn urls(&self) -> String {
        self.everywhere(self.node(0)).url().to_owned()
    }

    /// Creates an empty database with a random name, in UTF-8, on all nodes, that is dropped with the returned value.
    ///
    /// # Errors
    ///
    /// As [`Access::database`], and when a node does not get to see it.
    pub fn database(&self) -> Result<GaleraDatabase> {
        self.on_all_nodes(self.node(0).database()?)
    }

    /// As [`database`](Self::database), with options as [`Access::database_with`].
    ///
    /// # Errors
    ///
    /// As [`database`](Self::database).
    pub fn database_with(&self, options: &str) -> Result<GaleraDatabase> {
        self.on_all_nodes(self.node(0).database_with(options)?)
    }

    /// Waits until a node has all that the others have, and takes writes.
    ///
    /// # Errors
    ///
    /// When that takes longer than a minute and a half; with the state that the node is in.
    pub fn wait_until_synced(&self, index: usize) -> Result<()> {
        self.node(index).wait_until_synced()
    }

    /// Waits until each node sees all of them, and serves.
    fn wait_until_together(&self) -> Result<()> {
        let all = NODES.to_string();
        for node in &self.nodes {
            node.wait_for("see all", || Ok(node.status("wsrep_cluster_size")? == all))?;
            node.wait_until_synced()?;
        }
        Ok(())
    }

    /// Cuts a node off from the others, which stay with each other, and waits until it has given up. It goes on
    /// running, and clients reach it.
    ///
    /// # Errors
    ///
    /// When the node cannot be reached by SQL, or does not give up within a minute and a half.
    pub fn isolate(&self, index: usize) -> Result<()> {
        self.node(index).set_isolation(true)?;
        self.wait_until_cut_off(index)
    }

    /// Waits until a node has noticed that it is not with most of the others.
    ///
    /// # Errors
    ///
    /// When that takes longer than a minute and a half.
    pub fn wait_until_cut_off(&self, index: usize) -> Result<()> {
        let node = self.node(index);
        node.wait_for("give up", || Ok(node.status("wsrep_cluster_status")? != "Primary"))
    }

    /// Ends an [isolation](Self::isolate), and waits until the node is synced.
    ///
    /// # Errors
    ///
    /// When the node cannot be reached by SQL, or as [`wait_until_synced`](Self::wait_until_synced).
    pub fn rejoin(&self, index: usize) -> Result<()> {
        self.node(index).set_isolation(false)?;
        self.wait_until_synced(index)
    }

    /// Starts a stopped or killed node as the first of a cluster, when there is no other to join.
    ///
    /// # Errors
    ///
    /// When it is running, or does not come up.
    pub fn bootstrap(&self, index: usize) -> Result<()> {
        self.node(index).start_as_first()
    }

    fn on_all_nodes(&self, database: Database) -> Result<GaleraDatabase> {
        let name = database.database_name();
        let nodes: Vec<Access> = self.nodes.iter().map(|node| node.in_database(name)).collect();
        for (node, access) in self.nodes.iter().zip(&nodes) {
            node.wait_for("see a new database", || Ok(access.sql("SELECT 1").is_ok()))?;
        }
        Ok(GaleraDatabase { urls: self.everywhere(&database).url().to_owned(), nodes, database })
    }

    /// What one node gives access to, at any node.
    fn everywhere(&self, access: &Access) -> Access {
        access.at_ports(self.nodes.iter().map(Server::port))
    }
}

/// A node of a [`Galera`] cluster. It is used as the [`Access`] to its database `app` as the superuser `root`.
///
/// [`start_again`](Server::start_again) has it rejoin nodes that run, and waits until it is synced. After a kill it
/// first finds out which was its last write, as services of distributions do, so that it fetches only newer ones.
#[derive(Debug)]
pub struct GaleraNode {
    process: Process,
    access: Access,
}

impl GaleraNode {
    /// The value of a status variable, such as `wsrep_cluster_size`; empty when there is none.
    ///
    /// # Errors
    ///
    /// When the node cannot be reached.
    pub fn status(&self, variable: &str) -> Result<String> {
        let line = self.access.sql(&format!("SHOW GLOBAL STATUS LIKE '{variable}'"))?;
        Ok(line.split_once('|').map(|(_, value)| value.to_owned()).unwrap_or_default())
    }

    /// The node's Unix socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        socket(self.process.folder())
    }

    fn start_as_first(&self) -> Result<()> {
        let state = data_dir(self.process.folder()).join("grastate.dat");
        if let Ok(text) = fs::read_to_string(&state) {
            fs::write(&state, text.replace("safe_to_bootstrap: 0", "safe_to_bootstrap: 1"))?;
        }
        self.start_with(Some("--wsrep-new-cluster"))
    }

    fn start_with(&self, argument: Option<&str>) -> Result<()> {
        let mut arguments: Vec<OsString> = argument.into_iter().map(OsString::from).collect();
        arguments.extend(self.recovered_position()?);
        let mut started = self.process.start(&arguments);
        if started.as_ref().is_err_and(has_not_met) {
            started = self.process.start(&arguments);
        }
        started?;
        self.wait_until_synced()
    }

    /// The argument that tells a node that was killed which was its last write.
    fn recovered_position(&self) -> Result<Option<OsString>> {
        let said = self.process.run(&["--wsrep-recover".into()])?;
        let position = said.lines().rev().find_map(|line| line.split_once("Recovered position:"));
        Ok(position.map(|(_, position)| flag("--wsrep-start-position=", position.trim())))
    }

    fn set_isolation(&self, isolated: bool) -> Result<()> {
        let isolated = u8::from(isolated);
        let set = format!("SET GLOBAL wsrep_provider_options = 'gmcast.isolate={isolated}'");
        self.in_database("").sql(&set).map(|_| ())
    }

    fn wait_until_synced(&self) -> Result<()> {
        self.wait_for("be synced", || {
            Ok(self.status("wsrep_local_state_comment")? == "Synced"
                && self.status("wsrep_cluster_status")? == "Primary"
                && self.status("wsrep_ready")? == "ON")
        })
    }

    fn wait_for(&self, what: &str, reached: impl Fn() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !reached()? {
            if Instant::now() > deadline {
                let state = self.sql("SHOW GLOBAL STATUS LIKE 'wsrep%'").unwrap_or_default();
                bail!("the node does not {what} within {} s:\n{state}", PATIENCE.as_secs());
            }
            sleep(POLL);
        }
        Ok(())
    }
}

impl Deref for GaleraNode {
    type Target = Access;

    fn deref(&self) -> &Access {
        &self.access
    }
}

impl Server for GaleraNode {
    fn process(&self) -> &Process {
        &self.process
    }

    fn start_again(&self) -> Result<()> {
        self.start_with(None)
    }
}

impl Drop for GaleraNode {
    fn drop(&mut self) {
        // Nobody needs the time that a node takes to leave in an orderly way.
        let _ = self.stop_hard();
    }
}

/// A database for one test on all nodes of a [`Galera`] cluster, dropped with this value.
#[derive(Debug)]
#[must_use = "the database is dropped with this value"]
pub struct GaleraDatabase {
    urls: String,
    nodes: Vec<Access>,
    database: Database,
}

impl GaleraDatabase {
    /// The database's name.
    #[must_use]
    pub fn database_name(&self) -> &str {
        self.database.database_name()
    }

    /// The database on a node, counted from 0.
    ///
    /// # Panics
    ///
    /// When there is no such node: there are three.
    #[must_use]
    pub fn node(&self, index: usize) -> &Access {
        &self.nodes[index]
    }

    /// One URL with all nodes.
    #[must_use]
    pub fn urls(&self) -> &str {
        &self.urls
    }
}

/// How soon nodes give up one that does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailureDetection {
    /// A node that is silent for 2 s is suspected, and after 4 s is given up whatever the others say: short enough for
    /// tests, and long enough for a busy machine.
    #[default]
    Quick,
    /// Galera's own defaults: 5 s and 15 s.
    Defaults,
    /// Two minutes and four, once the nodes have found each other: for where none fails. A busy machine can starve a
    /// node for seconds, and whoever is given up refuses everything until it has joined again.
    Patient,
}

impl FailureDetection {
    fn provider_options(self) -> &'static str {
        match self {
            // Nodes do not find each other if they wait for long for one that has to connect once more.
            FailureDetection::Quick | FailureDetection::Patient => {
                "evs.keepalive_period=PT0.5S;evs.inactive_check_period=PT0.25S;evs.suspect_timeout=PT2S;\
                 evs.inactive_timeout=PT4S;evs.install_timeout=PT4S;gmcast.peer_timeout=PT2S;"
            }
            FailureDetection::Defaults => "",
        }
    }

    /// What is set once the nodes have found each other, in this order.
    fn provider_options_later(self) -> &'static [&'static str] {
        match self {
            FailureDetection::Quick | FailureDetection::Defaults => &[],
            FailureDetection::Patient => &["evs.inactive_timeout=PT4M", "evs.suspect_timeout=PT2M"],
        }
    }
}

/// How to start a [`Galera`].
#[derive(Debug, Default)]
#[must_use = "nothing is started before `start`"]
pub struct GaleraBuilder {
    durability: Durability,
    settings: Vec<(String, String)>,
    provider_options: String,
    failure_detection: FailureDetection,
}

impl GaleraBuilder {
    /// Keeps the settings on which a node's durability depends at MariaDB's own defaults, as
    /// [`MysqldBuilder::durable`](crate::MysqldBuilder::durable).
    pub fn durable(mut self) -> GaleraBuilder {
        self.durability = Durability::Durable;
        self
    }

    /// Sets an option of the servers, such as `wsrep_sync_wait`.
    pub fn setting(mut self, name: &str, value: &str) -> GaleraBuilder {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets an option of Galera itself, one of `wsrep_provider_options`, such as `pc.ignore_sb`.
    pub fn provider_option(mut self, name: &str, value: &str) -> GaleraBuilder {
        self.provider_options.push_str(&format!("{name}={value};"));
        self
    }

    /// How soon nodes give up one that does not answer.
    pub fn failure_detection(mut self, failure_detection: FailureDetection) -> GaleraBuilder {
        self.failure_detection = failure_detection;
        self
    }

    /// Starts the cluster and waits until its nodes have found each other.
    ///
    /// # Errors
    ///
    /// As [`Galera::start`]; and when a server refuses a setting.
    pub fn start(self) -> Result<Galera> {
        for _ in 0..10 {
            match self.start_on_free_ports() {
                Err(error) if port_was_taken(&error) || has_not_met(&error) => {}
                started => return started,
            }
        }
        bail!("ten times in turn a free port was taken by somebody else, or the nodes did not meet")
    }

    fn start_on_free_ports(&self) -> Result<Galera> {
        RSYNC.find()?;
        let password = random_hex(16)?;
        let group_ports = free_ports()?;
        let cluster = Galera {
            nodes: (0..NODES)
                .map(|index| self.node(index, &group_ports, &password))
                .collect::<Result<_>>()?,
        };
        let (first, others) = cluster.nodes.split_first().context("a cluster has nodes")?;
        first.start_as_first()?;
        thread::scope(|scope| {
            let starting: Vec<_> =
                others.iter().map(|node| scope.spawn(|| node.start_again())).collect();
            starting.into_iter().try_for_each(|node| match node.join() {
                Ok(started) => started,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        cluster.wait_until_together()?;
        for node in &cluster.nodes {
            for option in self.failure_detection.provider_options_later() {
                node.sql(&format!("SET GLOBAL wsrep_provider_options = '{option}'"))?;
            }
        }
        // A node that was starved meanwhile may have been given up.
        cluster.wait_until_together()?;
        Ok(cluster)
    }

    /// A node that is ready to be started.
    fn node(&self, index: usize, group_ports: &[u16], password: &str) -> Result<GaleraNode> {
        let folder = Folder::create("galera", Account::ordinary(&["mysql"])?)?;
        prepare_data::<MariaDbProduct>(&folder, password)?;
        let [port, transfer_port, copy_port] = free_ports()?;
        let mut launch = launch::<MariaDbProduct>(folder.path(), port, self.durability)?;
        let group: Vec<String> =
            group_ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let provider = GALERA.find()?.join("libgalera_smm.so");
        let own = [
            ("wsrep_provider", provider.display().to_string()),
            ("wsrep_cluster_name", format!("dblocks-{}", group_ports[0])),
            ("wsrep_cluster_address", format!("gcomm://{}", group.join(","))),
            ("wsrep_node_name", format!("node{index}")),
            ("wsrep_node_address", "127.0.0.1".to_owned()),
            ("wsrep_node_incoming_address", format!("127.0.0.1:{port}")),
            ("wsrep_sst_receive_address", format!("127.0.0.1:{copy_port}")),
            (
                "wsrep_provider_options",
                format!(
                    "gmcast.listen_addr=tcp://{};ist.recv_addr=127.0.0.1:{transfer_port};gcache.size=32M;{}{}",
                    group[index],
                    self.failure_detection.provider_options(),
                    self.provider_options
                ),
            ),
        ];
        launch.arguments.extend(SETTINGS.map(|(name, value)| format!("--{name}={value}").into()));
        launch.arguments.extend(own.map(|(name, value)| format!("--{name}={value}").into()));
        launch.arguments.extend(options(&self.settings));
        Ok(GaleraNode {
            access: superuser(port, password)?,
            process: Process::stopped(folder, port, launch),
        })
    }
}

/// Whether a node did not find the others, as where the machine is busy in that moment, or could not be sent what they
/// have, as where somebody took the port for that after it was found free: the daemon there does not say why it ended.
fn has_not_met(error: &anyhow::Error) -> bool {
    let said = error.to_string();
    said.contains("failed to reach primary view")
        || said.contains("WSREP_SST") && said.contains("terminated unexpectedly")
}

/// Ports that are free and different.
fn free_ports() -> Result<[u16; NODES]> {
    let ports = [free_port()?, free_port()?, free_port()?];
    let different = ports[0] != ports[1] && ports[1] != ports[2] && ports[0] != ports[2];
    ensure!(different, "Address already in use: the same port was found free twice");
    Ok(ports)
}
