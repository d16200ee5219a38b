"""Runs the script of QGIS Processing without a window, as a program of QGIS's own Python: JSON in, JSON out."""

import importlib.util
import json
import sys

from qgis.core import (
    QgsApplication,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingOutputLayerDefinition,
    QgsProcessingUtils,
    QgsProject,
    QgsRasterLayer,
)
from qgis.PyQt.QtCore import QSize


class Feedback(QgsProcessingFeedback):
    """Keeps what it is told; cancels after the first tile if asked to."""

    def __init__(self, cancels):
        super().__init__(False)
        self.cancels, self.percents = cancels, []

    def setProgress(self, percent):
        self.percents.append(percent)
        if self.cancels:
            self.cancel()


def main(script, parameters, cancels, picture):
    application = QgsApplication([], False)
    application.initQgis()
    spec = importlib.util.spec_from_file_location("rsmoe_processing", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    project, feedback, context = QgsProject.instance(), Feedback(cancels), QgsProcessingContext()
    context.setProject(project)
    output = QgsProcessingOutputLayerDefinition("TEMPORARY_OUTPUT", project)
    results, ok = module.RSMoEAlgorithm().create().run({**parameters, "OUTPUT": output}, context, feedback)
    if not ok:
        return {"log": feedback.textLog()}
    layer = QgsProcessingUtils.mapLayerFromString(results["OUTPUT"], context)
    context.layerToLoadOnCompletionDetails(results["OUTPUT"]).postProcessor().postProcessLayer(
        layer, context, feedback
    )
    settings, raster = QgsMapSettings(), QgsRasterLayer(parameters["INPUT"], "raster")  # the settings keep no layer
    settings.setLayers([layer, raster])
    settings.setDestinationCrs(layer.crs())
    settings.setExtent(layer.extent())
    settings.setOutputSize(QSize(600, 400))
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    job.renderedImage().save(picture)
    names, renderer = layer.fields().names(), layer.renderer()
    return {
        "rows": [dict(zip(names, feature.attributes())) for feature in layer.getFeatures()],
        "shapes": [json.loads(feature.geometry().asJson()) for feature in layer.getFeatures()],
        "crs": layer.crs().authid(),
        "by": renderer.classAttribute(),
        "legend": [item.label() for item in renderer.legendSymbolItems()],
        "percents": feedback.percents,
        "log": feedback.textLog(),
    }


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1])), default=str))
