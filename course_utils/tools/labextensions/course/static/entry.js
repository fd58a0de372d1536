// JupyterLab shows the pictures of outputs without the alternative text in their metadata. This
// adds it, for people who hear a page or cannot see its pictures. `course lab` loads it; it is
// written as JupyterLab expects a built extension, so nothing has to be built.
let modules;

(window._JUPYTERLAB ??= {}).course = {
  init(shared) {
    modules = shared;
  },

  async get() {
    const [rendermime] = Object.values(modules["@jupyterlab/rendermime"]);
    const { RenderedImage } = (await rendermime.get())();

    class DescribedImage extends RenderedImage {
      async render(model) {
        await super.render(model);
        const described = model.metadata["image/png"]?.alt ?? model.data["text/plain"];
        this.node.querySelector("img").alt = described ?? "";
      }
    }

    const extension = {
      id: "course:pictures",
      dataType: "string",
      rank: 90, // that of JupyterLab's own pictures
      rendererFactory: {
        safe: true,
        mimeTypes: ["image/png"],
        createRenderer: (options) => new DescribedImage(options),
      },
    };
    return () => ({ __esModule: true, default: extension });
  },
};
