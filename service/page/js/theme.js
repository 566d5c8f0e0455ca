// A classic script that blocks: it runs before the first paint, so that no light page flashes in the dark.
try {
  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {} // storage is forbidden: the system's theme
