//! Who works on which partition, decided from the workers' ids alone: every worker that sees the same others comes to
//! the same answer, without asking anyone.

use std::collections::HashMap;

use xxhash_rust::xxh3::Xxh3;

/// The partitions that fall to `me` among `workers` (each once, in any order, `me` included).
///
/// No two workers differ by more than one partition. Within that, a partition goes to the worker that draws the highest
/// hash for it (rendezvous hashing), so when a worker comes or goes, most partitions stay where they are.
pub(super) fn share(me: &str, workers: &[String], partitions: u16) -> Vec<bool> {
    let count = workers.len().max(1);
    let each = usize::from(partitions) / count;
    let mut larger_shares = usize::from(partitions) % count;
    let mut loads: HashMap<&str, usize> = HashMap::with_capacity(count);
    (0..partitions)
        .map(|partition| {
            let has_room = |worker: &&String| {
                let load = loads.get(worker.as_str()).copied().unwrap_or(0);
                load < each || (load == each && larger_shares > 0)
            };
            let owner = workers
                .iter()
                .filter(has_room)
                .max_by_key(|worker| (draw(worker, partition), worker.as_str()));
            let Some(owner) = owner else { return false };
            let load = loads.entry(owner).or_default();
            if *load == each {
                larger_shares -= 1;
            }
            *load += 1;
            owner == me
        })
        .collect()
}

fn draw(worker: &str, partition: u16) -> u64 {
    let mut hasher = Xxh3::with_seed(partition.into());
    hasher.update(worker.as_bytes());
    hasher.digest()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn owners(workers: &[String], partitions: u16) -> Vec<Vec<usize>> {
        let shares: Vec<Vec<bool>> =
            workers.iter().map(|worker| share(worker, workers, partitions)).collect();
        (0..usize::from(partitions))
            .map(|partition| (0..workers.len()).filter(|&w| shares[w][partition]).collect())
            .collect()
    }

    proptest! {
        #[test]
        fn every_partition_has_one_owner_and_no_one_has_two_more_than_another(
            ids in proptest::collection::hash_set("[a-z0-9-]{1,12}", 1..12), partitions in 1_u16..64,
        ) {
            let workers: Vec<String> = ids.into_iter().collect();
            let owners = owners(&workers, partitions);
            prop_assert!(owners.iter().all(|owners| owners.len() == 1), "{owners:?}");
            let loads: Vec<usize> =
                (0..workers.len()).map(|w| owners.iter().filter(|o| o[0] == w).count()).collect();
            let (most, least) = (loads.iter().max().unwrap(), loads.iter().min().unwrap());
            prop_assert!(most - least <= 1, "{loads:?}");
        }

        #[test]
        fn the_order_in_which_workers_are_seen_does_not_matter(
            ids in proptest::collection::hash_set("[a-z0-9]{1,8}", 2..8),
        ) {
            let mut workers: Vec<String> = ids.into_iter().collect();
            let me = workers[0].clone();
            let one = share(&me, &workers, 32);
            workers.reverse();
            prop_assert_eq!(share(&me, &workers, 32), one);
        }
    }

    #[test]
    fn most_partitions_stay_when_a_worker_comes() {
        let workers: Vec<String> = (0..4).map(|n| format!("worker-{n}")).collect();
        let (before, after) = (owners(&workers[..3], 64), owners(&workers, 64));
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        assert!((16..=32).contains(&moved), "{moved} of 64 moved, 16 had to");
        let newcomer: HashSet<usize> = after.iter().map(|owners| owners[0]).collect();
        assert!(newcomer.contains(&3));
    }
}
