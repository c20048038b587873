package browser

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// pictureWidth is the width of a picture in README.md on a phone.
const pictureWidth = 350

// pictures serves every picture of docs/ in a page with GitHub's background.
func pictures(t *testing.T) (address string, names []string) {
	t.Helper()
	needChromium(t)
	files, err := filepath.Glob("../docs/*.svg")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	mux := http.NewServeMux()
	for _, file := range files {
		picture, err := os.ReadFile(file)
		require.NoError(t, err)
		name := filepath.Base(file)
		names = append(names, name)
		mux.HandleFunc("/"+name, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			fmt.Fprintf(w, `<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>%[1]s</title>`+
				`<link rel="icon" href="data:,"><style>:root { color-scheme: light dark } body { margin: 15px; background: light-dark(#fff, #0d1117) } `+
				`svg { width: 100%%; height: auto; max-width: 520px }</style>`+
				`<main><h1>%[1]s</h1>%[2]s</main>`, name, picture)
		})
	}
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv.URL, names
}

// judgePicture returns the problems of the picture in the page.
const judgePicture = `(() => {
	const rgb = color => color.match(/[\d.]+/g).map(Number);
	const luminance = color => rgb(color).slice(0, 3).map(v => v / 255)
		.map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
		.reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
	const contrast = (a, b) => {
		const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
		return (high + 0.05) / (low + 0.05);
	};
	const svg = document.querySelector("svg"), frame = svg.getBoundingClientRect();
	const [sheet, ...paths] = svg.querySelectorAll("path");
	const paper = getComputedStyle(sheet).fill;
	const wrong = [];
	const box = e => e.getBoundingClientRect();
	const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
	const fits = r => r.left >= frame.left && r.right <= frame.right && r.top >= frame.top && r.bottom <= frame.bottom;
	const covered = box(sheet);
	if (covered.width < frame.width - 1 || covered.height < frame.height - 1) wrong.push("the background does not cover the picture");
	const texts = [...svg.querySelectorAll("text")].filter(e => e.textContent.trim());
	const scale = frame.width / svg.viewBox.baseVal.width;
	texts.forEach((e, i) => {
		const size = parseFloat(getComputedStyle(e).fontSize) * scale, name = JSON.stringify(e.textContent);
		if (size < 11) wrong.push(name + " is " + size.toFixed(1) + " pixels high");
		if (contrast(getComputedStyle(e).fill, paper) < 4.5) wrong.push(name + " has too little contrast");
		if (!fits(box(e))) wrong.push(name + " is cut off");
		for (const other of texts.slice(i + 1)) {
			if (meet(box(e), box(other))) wrong.push(name + " touches " + JSON.stringify(other.textContent));
		}
		for (const path of paths) {
			if (getComputedStyle(path).fill !== "none" && meet(box(e), box(path))) wrong.push(name + " touches a bar or a mark");
		}
	});
	for (const path of paths) {
		const style = getComputedStyle(path);
		for (const [color, opacity] of [[style.fill, style.fillOpacity], [style.stroke, style.strokeOpacity]]) {
			if (color === "none" || Number(opacity) < 1) continue; // the grid is faint
			if (contrast(color, paper) < 4.5) wrong.push(color + " has too little contrast");
		}
	}
	return [...new Set(wrong)].join("\n") || (texts.length > 5 && paths.length > 5 ? "" : "the picture is empty");
})()`

func TestPicturesAreReadableOnAPhoneInBothSchemes(t *testing.T) {
	t.Parallel()
	address, names := pictures(t)
	for _, name := range names {
		b := open(t, address+"/"+name)
		for _, scheme := range []string{"light", "dark"} {
			b.emulate(pictureWidth+30, 800, scheme)
			assert.Empty(t, eval[string](b, "%s", judgePicture), "%s, %s", name, scheme)
		}
		b.shoot("picture-" + name)
	}
}
