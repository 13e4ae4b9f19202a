//! Evidence straight from a store of objects, piece by piece: nothing of it comes onto the disk.

use std::io::{self, Read};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{
    ObjectStore, ObjectStoreExt as _, aws::AmazonS3Builder, azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder, path::Path,
};
use remora_capture::{
    evidence::{Inventory, Scope},
    text::shown,
};
use tokio::runtime::Handle;

use super::{Identities, gather::Gathered};

/// Most objects below one place.
const OBJECTS_MAX: usize = 100_000;

/// A place in a store, with the credentials of the environment.
#[derive(Debug)]
pub(crate) struct Place {
    store: Box<dyn ObjectStore>,
    prefix: Path,
}

impl Place {
    /// `s3://BUCKET/PREFIX`, `gs://…`, `az://CONTAINER/…`; `None` for what is no such URL.
    ///
    /// # Errors
    /// The environment has not what it takes.
    pub(crate) fn of(text: &str) -> anyhow::Result<Option<Self>> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(None);
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        // Somebody else may have set it to the same.
        let _set = rustls::crypto::ring::default_provider().install_default();
        let store: Box<dyn ObjectStore> = match scheme {
            "s3" => {
                let builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
                Box::new(builder.build().context("S3 is not set up (AWS_…)")?)
            }
            "gs" => {
                let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
                Box::new(
                    builder
                        .build()
                        .context("Google's is not set up (GOOGLE_…)")?,
                )
            }
            "az" => {
                let builder = MicrosoftAzureBuilder::from_env().with_container_name(bucket);
                Box::new(builder.build().context("Azure's is not set up (AZURE_…)")?)
            }
            other => bail!(
                "{}:// is no store that is known; use s3, gs or az",
                shown(other)
            ),
        };
        Ok(Some(Self {
            store,
            prefix: Path::parse(prefix.trim_matches('/'))?,
        }))
    }

    /// Reads all below it, and what is encrypted to one of the keys.
    ///
    /// # Errors
    /// The store refuses, or there is no manifest.
    pub(crate) async fn gather(&self, keys: &Identities) -> anyhow::Result<Gathered> {
        let mut inventory = Inventory::default();
        let listed = self.store.list(Some(&self.prefix)).take(OBJECTS_MAX + 1);
        let listed: Vec<_> = listed.try_collect().await.context("it cannot be listed")?;
        if listed.len() > OBJECTS_MAX {
            bail!("more than {OBJECTS_MAX} objects: name a folder below it");
        }
        for object in listed {
            let name = object.location.filename().unwrap_or_default().to_owned();
            let cannot = || format!("{} cannot be read", shown(object.location.as_ref()));
            let got = self.store.get(&object.location).await;
            let pieces = Pieces {
                handle: Handle::current(),
                stream: got.with_context(cannot)?.into_stream(),
                rest: Bytes::new(),
            };
            let keys = keys.clone();
            let read = tokio::task::spawn_blocking(move || {
                let read = keys.gather(&name, pieces, &mut inventory);
                read.map(|_digest| inventory)
            });
            inventory = read.await?.with_context(cannot)?;
        }
        if inventory.manifests().next().is_none() {
            bail!("no manifest is there: it is no evidence");
        }
        Ok(Gathered {
            inventory,
            scope: Scope::Selection,
        })
    }
}

/// A stream as it is read on a thread that may wait.
struct Pieces {
    handle: Handle,
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    rest: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.handle.block_on(self.stream.next()) {
                Some(piece) => self.rest = piece.map_err(io::Error::other)?,
                None => return Ok(0),
            }
        }
        let most = into.len().min(self.rest.len());
        into[..most].copy_from_slice(&self.rest.split_to(most));
        Ok(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_no_stores_and_an_unknown_scheme_is_named() {
        assert!(
            Place::of("case/01J9ZQ3C7M8N4R5T6V7W8X9YZA.pcapng")
                .unwrap()
                .is_none()
        );
        let error = Place::of("ftp://x/y").unwrap_err().to_string();
        assert!(error.contains("use s3, gs or az"), "{error}");
    }
}
