//! What tells that the broker has lost its newest messages: when frames came in, how far event ids were given out.

use sea_orm_migration::{prelude::*, schema::*};

#[derive(Debug, DeriveMigrationName)]
pub(super) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // SQLite adds one column a statement.
        for column in ["seen_at", "moved_at"] {
            let added = big_integer(column).default(0).to_owned();
            manager
                .alter_table(Table::alter().table("partitions").add_column(added).to_owned())
                .await?;
        }
        manager
            .create_table(
                Table::create()
                    .table("event_streams")
                    .col(integer("id").primary_key())
                    .col(big_integer("created"))
                    .col(big_integer("high"))
                    .to_owned(),
            )
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("event_streams").to_owned()).await?;
        for column in ["seen_at", "moved_at"] {
            manager
                .alter_table(Table::alter().table("partitions").drop_column(column).to_owned())
                .await?;
        }
        Ok(())
    }
}
