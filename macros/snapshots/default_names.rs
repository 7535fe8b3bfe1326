#[locked]
async fn free() -> anyhow::Result<()> {
    Ok(())
}

impl Report {
    #[locked]
    async fn method(&self) -> anyhow::Result<()> {
        Ok(())
    }

    #[locked]
    fn constructor() -> Result<Self, Error> {
        Ok(Self)
    }

    #[locked]
    async fn r#type() -> anyhow::Result<()> {
        Ok(())
    }
}
