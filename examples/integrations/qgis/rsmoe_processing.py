"""A script of QGIS Processing: describe a raster layer tile by tile with `rsmoe`, as a styled layer.

In QGIS: Processing Toolbox > Scripts > Add Script to Toolbox. `rsmoe` runs in an environment of its own, as another
program that prints one JSON object for each tile: QGIS needs neither torch nor this package.
"""

import json
import os
import queue
import subprocess
import threading

from qgis.core import (
    QgsCategorizedSymbolRenderer,
    QgsClassificationQuantile,
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsFeatureSink,
    QgsField,
    QgsFields,
    QgsFillSymbol,
    QgsGeometry,
    QgsGraduatedSymbolRenderer,
    QgsJsonUtils,
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingException,
    QgsProcessingLayerPostProcessorInterface,
    QgsProcessingParameterFeatureSink,
    QgsProcessingParameterFile,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsRendererCategory,
    QgsStyle,
    QgsWkbTypes,
)
from qgis.PyQt.QtCore import QVariant


COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
GREY, OPACITY = "#999999", "0.45"
# QGIS sets these for its own Python, GDAL and PROJ; those of another environment would break on them.
_OF_QGIS = ("PYTHONHOME", "PYTHONPATH", "GDAL_DATA", "GDAL_DRIVER_PATH", "PROJ_LIB", "PROJ_DATA")


# ---- the program


def make_command(executable, raster, model="", tile=512, overlap=0, bands="", question=""):
    """The words of the command that describes a raster."""
    task = ["ask", raster, "--question", question] if question else ["caption", raster]
    command = [executable, *task, "--json", "--tile", str(tile), "--overlap", str(overlap)]
    return command + (["--bands", bands] if bands else []) + (["--model", model] if model else [])


def run_command(command, is_canceled, on_note):
    """Run a command, and yield the JSON objects that it prints as they come.

    Args:
        command: its words.
        is_canceled: asked several times a second; once it is true, the program is ended.
        on_note: called with each other line that it prints.

    Raises:
        OSError: there is no such program.
        RuntimeError: it failed; the message is what it said last.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env={name: value for name, value in os.environ.items() if name not in _OF_QGIS},
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
    lines = queue.Queue()
    for stream in (process.stdout, process.stderr):
        threading.Thread(target=_read, args=(stream, lines), daemon=True).start()
    num_open, last = 2, ""
    try:
        while num_open:
            if is_canceled():
                return
            try:
                stream, line = lines.get(timeout=0.2)
            except queue.Empty:
                continue
            if line is None:
                num_open -= 1
            elif stream is process.stdout:
                yield json.loads(line)
            elif line:
                last = line
                on_note(line)
        if process.wait():
            raise RuntimeError(last or f"{command[0]} ended with exit code {process.returncode}")
    finally:
        process.terminate()
        process.wait()


def _read(stream, lines):
    for line in stream:
        lines.put((stream, line.strip()))
    lines.put((stream, None))


def num_tiles(width, height, tile, overlap):
    """How many tiles `rsmoe` cuts a raster into."""
    across, down = (1 + -(-max(0, length - tile) // (tile - overlap)) for length in (width, height))
    return across * down


def columns_of(line):
    """A tile's JSON object as one row of a table: texts of experts, by name, get a column each."""
    columns = {name: value for name, value in line.items() if isinstance(value, (str, int, float))}
    columns.update(zip(("column", "row", "width", "height"), line["window"]))
    for kind, texts in (("expert_text", line["expert_texts"]), ("router_prompt", line["router_prompts"])):
        columns.update((f"{kind}_{name}", text) for name, text in texts.items())
    return columns


# ---- the layer


class Style(QgsProcessingLayerPostProcessorInterface):
    """Answers by their text; captions by the reranker's score, or else by the share of valid pixels."""

    kept = None

    def postProcessLayer(self, layer, context, feedback):
        fields = layer.fields().names()
        text = "answer" if "answer" in fields else "caption"
        if text == "answer":
            layer.setRenderer(self._by_answer(layer))
        else:
            layer.setRenderer(self._by_number(layer, "score" if "score" in fields else "valid"))
        layer.setMapTipTemplate(f'<b>[% "{text}" %]</b>')
        layer.setDisplayExpression(f'"{text}"')
        layer.triggerRepaint()

    def _by_answer(self, layer):
        field = layer.fields().indexFromName("answer")
        counts = {}
        for feature in layer.getFeatures():
            counts[feature[field]] = counts.get(feature[field], 0) + 1
        answers = sorted(counts, key=lambda answer: (-counts[answer], str(answer)))[: len(COLORS)]
        categories = [
            QgsRendererCategory(answer, _symbol(color), f"{answer} ({counts[answer]})")
            for answer, color in zip(answers, COLORS)
        ]
        categories.append(QgsRendererCategory(None, _symbol(GREY), "other"))
        return QgsCategorizedSymbolRenderer("answer", categories)

    def _by_number(self, layer, field):
        renderer = QgsGraduatedSymbolRenderer(field)
        renderer.setSourceSymbol(_symbol(GREY))
        renderer.setSourceColorRamp(QgsStyle.defaultStyle().colorRamp("Viridis"))
        renderer.setClassificationMethod(QgsClassificationQuantile())
        renderer.updateClasses(layer, 5)
        renderer.updateColorRamp(QgsStyle.defaultStyle().colorRamp("Viridis"))
        return renderer


def _symbol(color):
    symbol = QgsFillSymbol.createSimple({"color": color, "outline_color": "#ffffff", "outline_width": "0.2"})
    symbol.setOpacity(float(OPACITY))
    return symbol


class RSMoEAlgorithm(QgsProcessingAlgorithm):
    """Captions of a raster's tiles, or answers to a question."""

    INPUT, EXECUTABLE, MODEL, TILE, OVERLAP = "INPUT", "EXECUTABLE", "MODEL", "TILE", "OVERLAP"
    BANDS, QUESTION, OUTPUT = "BANDS", "QUESTION", "OUTPUT"

    def createInstance(self):
        return RSMoEAlgorithm()

    def name(self):
        return "describe"

    def displayName(self):
        return "Describe a raster with RS-MoE"

    def group(self):
        return "RS-MoE"

    def groupId(self):
        return "rsmoe"

    def shortHelpString(self):
        return (
            "Captions every tile of a raster, or asks each a question. The layer's colors are answers, or the "
            "reranker's score: how well a caption fits its tile, in five classes of equal size. It is no probability. "
            "Where the checkpoint has no reranker, the colors are shares of valid pixels."
        )

    def initAlgorithm(self, configuration=None):
        number, integer = QgsProcessingParameterNumber, QgsProcessingParameterNumber.Integer
        for parameter in (
            QgsProcessingParameterRasterLayer(self.INPUT, "Raster"),
            QgsProcessingParameterFile(
                self.EXECUTABLE, "The program rsmoe, in its environment's folder bin", defaultValue="rsmoe"
            ),
            QgsProcessingParameterString(self.MODEL, "Checkpoint", defaultValue="rs-moe-nano"),
            number(self.TILE, "Side of a tile in pixels", integer, defaultValue=512, minValue=8),
            number(self.OVERLAP, "Overlap of neighboring tiles in pixels", integer, defaultValue=0, minValue=0),
            QgsProcessingParameterString(self.BANDS, "Bands, such as 4,3,2", optional=True),
            QgsProcessingParameterString(self.QUESTION, "Question, in place of captions", optional=True),
            QgsProcessingParameterFeatureSink(self.OUTPUT, "Tiles", QgsProcessing.TypeVectorPolygon),
        ):
            self.addParameter(parameter)

    def processAlgorithm(self, parameters, context, feedback):
        raster = self.parameterAsRasterLayer(parameters, self.INPUT, context)
        if raster.dataProvider().name() != "gdal":
            raise QgsProcessingException(f"{raster.name()} is no file: save it as a GeoTIFF first")
        tile, overlap = (self.parameterAsInt(parameters, name, context) for name in (self.TILE, self.OVERLAP))
        executable = self.parameterAsString(parameters, self.EXECUTABLE, context)
        texts = [self.parameterAsString(parameters, name, context) for name in (self.MODEL, self.BANDS, self.QUESTION)]
        model, bands, question = (text.strip() for text in texts)
        if overlap >= tile:
            raise QgsProcessingException(f"an overlap of {overlap} px does not fit tiles of {tile} px")
        command = make_command(executable, raster.source(), model, tile, overlap, bands, question)
        feedback.pushCommandInfo(" ".join(command))
        total = num_tiles(raster.width(), raster.height(), tile, overlap)
        sink = None
        try:
            for line in run_command(command, feedback.isCanceled, feedback.pushConsoleInfo):
                if "tile" not in line:  # the record of the scene comes last
                    feedback.pushInfo(line.get("caption") or line.get("answer", ""))
                    continue
                if sink is None:
                    fields = _fields(columns_of(line))
                    system = QgsCoordinateReferenceSystem("EPSG:4326")
                    sink, layer = self.parameterAsSink(
                        parameters, self.OUTPUT, context, fields, QgsWkbTypes.MultiPolygon, system
                    )
                sink.addFeature(_feature(line, fields), QgsFeatureSink.FastInsert)
                feedback.setProgress(100 * (line["tile"] + 1) / total)
        except OSError as error:
            raise QgsProcessingException(f"{executable} cannot be started ({error}): give where rsmoe lies") from error
        except (RuntimeError, ValueError) as error:
            raise QgsProcessingException(str(error)) from error
        if sink is None:
            raise QgsProcessingException("canceled before the first tile")
        if context.willLoadLayerOnCompletion(layer):
            Style.kept = Style()  # neither the context nor this algorithm lives until it is called
            context.layerToLoadOnCompletionDetails(layer).setPostProcessor(Style.kept)
        return {self.OUTPUT: layer}


def _fields(columns):
    types = {int: QVariant.Int, float: QVariant.Double, str: QVariant.String}
    fields = QgsFields()
    for name, value in columns.items():
        fields.append(QgsField(name, types[type(value)]))
    return fields


def _feature(line, fields):
    columns = columns_of(line)
    feature = QgsFeature(fields)
    feature.setAttributes([columns.get(name) for name in fields.names()])
    if line["geometry"] is not None:  # of a raster that is placed on the earth
        geometry = {"type": "Feature", "properties": {}, "geometry": line["geometry"]}
        (shape,) = QgsJsonUtils.stringToFeatureList(json.dumps(geometry), QgsFields())
        outline = QgsGeometry(shape.geometry())
        outline.convertToMultiType()
        feature.setGeometry(outline)
    return feature
