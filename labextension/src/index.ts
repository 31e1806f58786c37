/**
 * The JupyterLab plugin: puts the mounts panel into the left sidebar.
 */
import {
  ILayoutRestorer,
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';

import { StatusModel } from './model';
import { MountsPanel } from './panel';

const plugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-wsfuse:plugin',
  description: 'Shows who has this server’s workspace mounted.',
  autoStart: true,
  optional: [ILayoutRestorer, ISettingRegistry, ITranslator],
  activate: (
    app: JupyterFrontEnd,
    restorer: ILayoutRestorer | null,
    registry: ISettingRegistry | null,
    translator: ITranslator | null
  ): void => {
    const model = new StatusModel(app.serviceManager.serverSettings);
    const panel = new MountsPanel(model, translator ?? nullTranslator);
    app.shell.add(panel, 'left', { rank: 600 });
    restorer?.add(panel, panel.id);

    // Not awaited: JupyterLab's start must not depend on our settings.
    registry
      ?.load(plugin.id)
      .then(settings => {
        const apply = () => {
          model.interval = 1000 * (settings.get('refreshSeconds').composite as number);
        };
        apply();
        settings.changed.connect(apply);
        panel.disposed.connect(() => settings.changed.disconnect(apply));
      })
      .catch(reason => console.warn('jupyter-wsfuse: settings not loaded', reason));
  }
};

export default plugin;
