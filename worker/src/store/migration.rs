//! The schema's history, the same for PostgreSQL and SQLite.

use sea_orm_migration::prelude::*;

mod m0001_first;
mod m0002_repair;

/// All migrations, oldest first.
#[derive(Debug)]
pub struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(m0001_first::Migration), Box::new(m0002_repair::Migration)]
    }
}
