//! Maps that can be changed while others look at them, as in Go, over template values that cannot.
//!
//! A chart changes values in place: `set` puts the pods' labels into an affinity term that it found deep inside
//! `.Values`, and expects to read them from there afterwards. The engine's maps are immutable, but they keep their
//! address wherever they are handed on. So a changed map gets a cell here, under its address; whoever holds any
//! version of it asks for the current one. A renderer that merely copies would lose the labels without a word.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use gotmpl::Value;

/// The engine's maps.
pub(crate) type ValueMap = BTreeMap<Arc<str>, Value>;

/// The maps that were changed during one rendering.
#[derive(Default)]
pub(crate) struct Heap {
    /// Every version of every changed map, the current one last. Kept so that no address is used twice.
    cells: Vec<Vec<Arc<ValueMap>>>,
    /// Which cell a version belongs to, by its address.
    cell_of: HashMap<usize, usize>,
}

fn address(map: &Arc<ValueMap>) -> usize {
    Arc::as_ptr(map) as usize
}

impl Heap {
    /// The map as it is now.
    fn current(&self, map: &Arc<ValueMap>) -> Arc<ValueMap> {
        self.cell_of
            .get(&address(map))
            .and_then(|cell| self.cells[*cell].last())
            .map_or_else(|| Arc::clone(map), Arc::clone)
    }

    /// The value as it is now; what lies inside a map is looked up when it is asked for.
    pub(crate) fn now(&self, value: &Value) -> Value {
        match value {
            Value::Map(map) => Value::Map(self.current(map)),
            other => other.clone(),
        }
    }

    /// The value as it is now, down to its leaves.
    pub(crate) fn whole(&self, value: &Value) -> Value {
        match value {
            Value::Map(map) => {
                let entries =
                    self.current(map).iter().map(|(key, value)| (Arc::clone(key), self.whole(value))).collect();
                Value::Map(Arc::new(entries))
            }
            Value::List(items) => Value::List(items.iter().map(|item| self.whole(item)).collect()),
            other => other.clone(),
        }
    }

    /// Changes a map for everyone who holds it.
    pub(crate) fn set(&mut self, map: &Arc<ValueMap>, key: &str, value: Value) {
        let mut entries = (*self.current(map)).clone();
        entries.insert(Arc::from(key), value);
        let changed = Arc::new(entries);
        let cell = *self.cell_of.entry(address(map)).or_insert_with(|| {
            self.cells.push(vec![Arc::clone(map)]);
            self.cells.len() - 1
        });
        self.cell_of.insert(address(&changed), cell);
        self.cells[cell].push(changed);
    }

    /// Sprig's `merge`: fills in `target`, in place, what `source` has and it lacks.
    pub(crate) fn merge(&mut self, target: &Arc<ValueMap>, source: &Arc<ValueMap>) {
        let source = self.current(source);
        for (key, value) in source.iter() {
            match (self.current(target).get(key), value) {
                (Some(Value::Map(inner)), Value::Map(filling)) => {
                    let (inner, filling) = (Arc::clone(inner), Arc::clone(filling));
                    self.merge(&inner, &filling);
                }
                (Some(there), _) if there.is_truthy() => {}
                _ => self.set(target, key, value.clone()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use gotmpl::tmap;

    use super::*;

    fn map(value: &Value) -> Arc<ValueMap> {
        match value {
            Value::Map(map) => Arc::clone(map),
            _ => panic!("a map"),
        }
    }

    #[test]
    fn a_change_is_seen_by_every_holder_and_through_every_parent() {
        let inner = tmap! { "a" => 1i64 };
        let outer = tmap! { "inner" => inner.clone() };
        let mut heap = Heap::default();
        heap.set(&map(&inner), "b", Value::Int(2));
        let newer = heap.now(&inner);
        heap.set(&map(&newer), "c", Value::Int(3));
        let all = tmap! { "a" => 1i64, "b" => 2i64, "c" => 3i64 };
        assert_eq!(heap.now(&inner), all);
        assert_eq!(heap.now(&newer), all);
        assert_eq!(heap.whole(&outer), tmap! { "inner" => all });
    }

    #[test]
    fn equal_maps_are_not_the_same_map() {
        let (one, other) = (tmap! { "a" => 1i64 }, tmap! { "a" => 1i64 });
        let mut heap = Heap::default();
        heap.set(&map(&one), "a", Value::Int(2));
        assert_eq!(heap.now(&other), tmap! { "a" => 1i64 });
    }

    #[test]
    fn merge_fills_in_and_never_overwrites() {
        let target = tmap! { "kept" => "mine", "empty" => "", "deep" => tmap! { "kept" => 1i64 } };
        let source =
            tmap! { "kept" => "other", "empty" => "filled", "deep" => tmap! { "kept" => 2i64, "new" => 3i64 } };
        let mut heap = Heap::default();
        heap.merge(&map(&target), &map(&source));
        assert_eq!(
            heap.whole(&target),
            tmap! { "kept" => "mine", "empty" => "filled", "deep" => tmap! { "kept" => 1i64, "new" => 3i64 } }
        );
        assert_eq!(heap.now(&source), source);
    }
}
