package service

import (
	"bytes"
	"embed"
	"html/template"
	"io/fs"
	"net/http"
)

//go:embed page
var pageFiles embed.FS

// handlePage serves the page and its files. With the fake provider, the page offers a choice of faults.
func handlePage(mux *http.ServeMux, fake bool) {
	files, err := fs.Sub(pageFiles, "page")
	if err != nil {
		panic(err) // impossible: the name is constant
	}
	var options []string
	if fake {
		options = Faults()
	}
	var index bytes.Buffer
	fields := append(questionsOperation().fields, feedbackOperation().fields...)
	limits := make(map[string]int, len(fields))
	for _, f := range fields {
		limits[f.name] = f.maxChars
	}
	data := struct {
		Faults []string
		Limits map[string]int
	}{options, limits}
	if err := template.Must(template.ParseFS(files, "index.html")).Execute(&index, data); err != nil {
		panic(err) // impossible: the template and its data are constant
	}
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write(index.Bytes())
	})
	for _, name := range []string{"app.js", "app.css", "icon.svg"} {
		mux.HandleFunc("GET /"+name, func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, files, name) })
	}
}
