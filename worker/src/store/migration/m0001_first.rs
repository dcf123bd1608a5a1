//! Chats, messages, partitions.

use sea_orm::{ConnectionTrait, DbBackend};
use sea_orm_migration::{prelude::*, schema::*};

#[derive(Debug, DeriveMigrationName)]
pub(super) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut chats = Table::create();
        chats
            .table("chats")
            .col(big_integer("id").primary_key().auto_increment())
            .col(text("user_a"))
            .col(text("user_b"));
        for counter in [
            "last",
            "a_last_sent",
            "a_read",
            "a_delivered",
            "a_missed",
            "b_last_sent",
            "b_read",
            "b_delivered",
            "b_missed",
            "updated_at",
        ] {
            chats.col(big_integer(counter).default(0));
        }
        manager.create_table(chats.to_owned()).await?;
        for (name, columns, unique) in [
            ("chats_members", &["user_a", "user_b"][..], true),
            ("chats_of_b", &["user_b"][..], false),
        ] {
            manager.create_index(index(name, "chats", columns, unique)).await?;
        }

        manager
            .create_table(
                Table::create()
                    .table("messages")
                    .col(big_integer("chat_id"))
                    .col(big_integer("message_id"))
                    .col(boolean("from_a"))
                    .col(text("sender"))
                    .col(text("client_message_id"))
                    .col(big_integer("digest"))
                    .col(big_integer("sent_at"))
                    .col(big_integer("stored_at"))
                    .col(text_null("body"))
                    .col(text_null("attachments"))
                    .col(boolean("deleted").default(false))
                    .primary_key(Index::create().col("chat_id").col("message_id"))
                    .to_owned(),
            )
            .await?;
        manager
            .create_index(index("messages_key", "messages", &["sender", "client_message_id"], true))
            .await?;

        manager
            .create_table(
                Table::create()
                    .table("partitions")
                    .col(integer("id").primary_key())
                    .col(big_integer("epoch").default(0))
                    .col(big_integer("applied").default(0))
                    .col(text("events").default("[]"))
                    .to_owned(),
            )
            .await?;
        if manager.get_database_backend() == DbBackend::Postgres {
            // The outbox is rewritten with every batch: compressing it would cost more than it saves.
            let sql = "ALTER TABLE partitions ALTER COLUMN events SET STORAGE EXTERNAL";
            manager.get_connection().execute_unprepared(sql).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["partitions", "messages", "chats"] {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        Ok(())
    }
}

fn index(
    name: &'static str,
    table: &'static str,
    columns: &[&'static str],
    unique: bool,
) -> IndexCreateStatement {
    let mut index = Index::create();
    index.name(name).table(table);
    for column in columns {
        index.col(*column);
    }
    if unique {
        index.unique();
    }
    index.to_owned()
}
