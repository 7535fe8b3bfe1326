use database_locks::locked;

fn main() {
    let report = #[locked("report")]
    async || Ok(());
}
