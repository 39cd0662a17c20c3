//! Where objects are.

use std::fmt;

use kube::{Resource, runtime::reflector::ObjectRef};

/// Where a namespaced object is.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Path {
    /// Where `object` is.
    pub fn of<K: Resource>(object: &K) -> Path {
        let meta = object.meta();
        Path {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }

    /// Where what is called `name` in the namespace of `object` is.
    pub fn beside<K: Resource>(object: &K, name: impl Into<String>) -> Path {
        Path {
            namespace: object.meta().namespace.clone().unwrap_or_default(),
            name: name.into(),
        }
    }

    /// From a store's key.
    pub fn of_ref<K: Resource>(key: &ObjectRef<K>) -> Path
    where
        K::DynamicType: Eq + std::hash::Hash,
    {
        Path {
            namespace: key.namespace.clone().unwrap_or_default(),
            name: key.name.clone(),
        }
    }

    /// The same, for a store.
    pub fn to_ref<K>(&self) -> ObjectRef<K>
    where
        K: Resource<DynamicType = ()>,
    {
        ObjectRef::new(&self.name).within(&self.namespace)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
