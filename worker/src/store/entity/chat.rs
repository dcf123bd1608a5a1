//! A chat: its two members and their counters (see [`crate::unread`]).

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "chats")]
#[allow(missing_docs)] // the columns are the fields of `unread::Ledger`
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    /// The member whose id sorts first, by bytes.
    pub user_a: String,
    /// The member whose id sorts last, by bytes.
    pub user_b: String,
    pub last: i64,
    pub a_last_sent: i64,
    pub a_read: i64,
    pub a_delivered: i64,
    pub a_missed: i64,
    pub b_last_sent: i64,
    pub b_read: i64,
    pub b_delivered: i64,
    pub b_missed: i64,
    /// Milliseconds since the Unix epoch.
    pub updated_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
#[allow(missing_docs)] // sea-orm asks for it; no relation is used
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
