/* Photos out of what people drop, choose or paste: files, and whole folders. */

// Endings of files that the service can read (images.py), where the formats that need an extra are there too.
export const SUFFIXES = new Set((
  "3fr apng arw avif avifs bmp cr2 cr3 crw dcr dng erf gif heic heics heif heifs hif iiq j2k jfif jp2 jpe jpeg jpf jpg "
  + "jpx kdc mef mos mpo mrw nef nrw orf pbm pef pgm png pnm ppm raf rw2 rwl sr2 srf srw tif tiff webp x3f"
).split(" "));
// Folders that programs fill with copies, thumbnails or deleted photos (library.py).
const NOT_PHOTOS = new Set([
  "@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "__macosx"
]);

export const suffixOf = (name) => (name.includes(".") ? name.slice(name.lastIndexOf(".") + 1).toLowerCase() : "");
const plausible = (file) => SUFFIXES.has(suffixOf(file.name)) || file.type.startsWith("image/");
const hidden = (name) => name.startsWith(".") || NOT_PHOTOS.has(name.toLowerCase());

/** Files with their paths, sorted into { photos, others }: what can be a photo, and the paths of what cannot. */
export function sorted(found) {
  const photos = [], others = [];
  for (const one of found) {
    if (one.path.split("/").some(hidden)) continue;
    if (plausible(one.file)) photos.push(one);
    else others.push(one.path);
  }
  photos.sort((a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0));
  return { photos, others };
}

export const chosen = (files) => sorted(
  [...files].map((file) => ({ file, path: file.webkitRelativePath || file.name }))
);

/** The files of a drop, those inside of folders too. It must be called while the event is being handled. */
export function dropped(transfer) {
  const roots = [...transfer.items].filter(({ kind }) => kind === "file").map((item) => {
    const entry = item.webkitGetAsEntry?.();
    return entry || item.getAsFile();
  }).filter(Boolean);
  return walk(roots.length ? roots : [...transfer.files]);
}

async function walk(roots) {
  const found = [], unread = [], waiting = [...roots];
  while (waiting.length) {
    const one = waiting.pop();
    try {
      if (one instanceof File) found.push({ file: one, path: one.name });
      else if (one.isFile) {
        const file = await new Promise((done, fail) => { one.file(done, fail); });
        found.push({ file, path: one.fullPath.replace(/^\//, "") });
      } else if (!hidden(one.name)) {
        const reader = one.createReader();
        for (;;) { // a reader gives some at a time
          const some = await new Promise((done, fail) => { reader.readEntries(done, fail); });
          if (!some.length) break;
          waiting.push(...some);
        }
      }
    } catch { // one that may not be read; the others can
      unread.push((one.fullPath || one.name).replace(/^\//, ""));
    }
  }
  const { photos, others } = sorted(found);
  return { photos, others: [...others, ...unread] };
}
